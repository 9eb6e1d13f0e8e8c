package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"filippo.io/age"
)

// vaultBlocks is how many blocks of 4 KiB are 1 % of the disk.
func (l *lab) vaultBlocks() int { return int(l.vaultSize / 4096 / 100) }

// depot is a program and where it keeps copies.
type depot struct {
	name string
	repo string
	// Commands of a shell: with the device %[1]s, and an image file %[2]s.
	init, backup, restore, verify, prune string
}

// vaults measures points in a vault beside other programs that keep versions. All of them
// encrypt. Processor time is what is compared: it says less about who else uses the machine.
func vaults(l *lab) error {
	disk, err := os.MkdirTemp("/var/tmp", "tidemark-bench-")
	if err != nil {
		return err
	}
	l.later(func() error { return os.RemoveAll(disk) })
	dev, err := l.realDisk(disk)
	if err != nil {
		return err
	}
	depots, err := l.depots(dev, disk)
	if err != nil {
		return err
	}
	fmt.Printf("## Points in a vault\n\nA loop device of %d MiB with ext4 and files of /usr; processor time is user and system time of the whole program; bytes are those that its folder grew by. 1 %% is %d blocks of 4 KiB.\n\n", l.vaultSize>>20, l.vaultBlocks())
	printVaultHead()
	if err := l.vaultBackups(dev, depots); err != nil {
		return err
	}
	if err := l.vaultRestores(dev, disk, depots); err != nil {
		return err
	}
	fmt.Println()
	return nil
}

func (l *lab) depots(dev, dir string) ([]depot, error) {
	key, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, err
	}
	keyFile := filepath.Join(dir, "key")
	if err := os.WriteFile(keyFile, []byte(key.String()+"\n"), 0o600); err != nil {
		return nil, err
	}
	v, r, b := filepath.Join(dir, "vault"), filepath.Join(dir, "restic"), filepath.Join(dir, "borg")
	ours := l.tidemark + " %s --identity " + keyFile + " "
	l.stopTracking(dev)
	return []depot{{
		name: "tidemark", repo: v,
		init:    l.tidemark + " vault init --recipient " + key.Recipient().String() + " " + v,
		backup:  fmt.Sprintf(ours, "backup --quiet --disk disk") + dev + " " + v,
		restore: fmt.Sprintf(ours, "restore") + v + " latest ",
		verify:  fmt.Sprintf(ours, "vault verify --data all") + v,
		prune:   fmt.Sprintf(ours, fmt.Sprintf("prune --now --keep-last %d", keptPoints)) + v,
	}, {
		name: "restic", repo: r,
		init:    "restic -q -r " + r + " init",
		backup:  "exec restic -q -r " + r + " backup --stdin --stdin-filename disk.img < " + dev,
		restore: "exec restic -q -r " + r + " dump latest disk.img > ",
		verify:  "exec restic -q -r " + r + " check --read-data",
		prune:   fmt.Sprintf("exec restic -q -r %s forget --prune --keep-last %d", r, keptPoints),
	}, {
		name: "borg", repo: b,
		init:    "borg init -e repokey-blake2 " + b,
		backup:  "exec borg create " + b + "::'{now:%s%f}' - < " + dev,
		restore: "exec borg extract --stdout " + b + "::$(borg list --last 1 --short " + b + ") > ",
		verify:  "exec borg check --verify-data " + b,
		prune:   fmt.Sprintf("borg prune --keep-last %d %s && borg compact %[2]s", keptPoints, b),
	}}, nil
}

// vaultBackups makes points of the same changes with each program in turn.
func (l *lab) vaultBackups(dev string, depots []depot) error {
	for _, d := range depots {
		if _, err := l.do("sh", "-c", d.init); err != nil {
			return err
		}
	}
	rng := newRNG()
	for _, row := range []struct {
		words  string
		change func() error
		ours   string // instead of the usual
	}{
		{"first copy", func() error { return nil }, ""},
		{"nothing changed", func() error { return nil }, ""},
		{"1 % at random", func() error { return changeBlocks(dev, l.vaultSize, l.vaultBlocks(), rng) }, ""},
		{"1 % in ten places", func() error { return changeRuns(dev, l.vaultSize, 10, l.vaultBlocks()/10, rng) }, ""},
		{"1 % as a database writes", func() error { return changeDatabase(dev, l.vaultSize, l.vaultBlocks(), rng) }, ""},
		{"1 % at random, the mark lost", func() error { return changeBlocks(dev, l.vaultSize, l.vaultBlocks(), rng) }, " --tracker scan"},
		{"1 % at random, the mark and the cache lost", func() error {
			return errors.Join(os.RemoveAll(l.path("cache")), changeBlocks(dev, l.vaultSize, l.vaultBlocks(), rng))
		}, " --tracker scan"},
	} {
		if err := row.change(); err != nil {
			return err
		}
		for _, d := range depots {
			backup := d.backup
			if row.ours != "" {
				if d.name != "tidemark" {
					continue // they know of no marks
				}
				backup += row.ours
			}
			syscall.Sync()
			before, err := treeBytes(d.repo)
			if err != nil {
				return err
			}
			u, err := timed(l.command("sh", "-c", backup))
			if err != nil {
				return err
			}
			after, err := treeBytes(d.repo)
			if err != nil {
				return err
			}
			printVault(row.words, d.name, u, fmt.Sprintf("%.1f", float64(after-before)/1e6))
		}
	}
	return nil
}

func (l *lab) vaultRestores(dev, dir string, depots []depot) error {
	if _, err := l.do("sh", "-c", depots[0].backup); err != nil { // the newest points are of other moments
		return err
	}
	image := filepath.Join(dir, "restored.img")
	for i, d := range depots {
		os.Remove(image)
		syscall.Sync()
		u, err := timed(l.command("sh", "-c", d.restore+image))
		if err != nil {
			return err
		}
		printVault("restore all to a file", d.name, u, "")
		if i == 0 {
			if _, err := l.do("cmp", dev, image); err != nil {
				return err
			}
		}
	}
	os.Remove(image)
	for _, d := range depots {
		u, err := timed(l.command("sh", "-c", d.verify))
		if err != nil {
			return err
		}
		printVault("verify all data", d.name, u, "")
	}
	if err := changeBlocks(dev, l.vaultSize, l.vaultBlocks(), newRNG()); err != nil {
		return err
	}
	u, err := timed(l.command("sh", "-c", depots[0].restore+dev+" --force"))
	if err != nil {
		return err
	}
	printVault("restore in place after 1 % at random", depots[0].name, u, "")
	return nil
}

func printVaultHead() {
	fmt.Print("| | program | processor, s | wall, s | peak memory, MiB | bytes added, MB |\n|---|---|---|---|---|---|\n")
}

func printVault(words, name string, u used, bytes string) {
	fmt.Printf("| %s | %s | %.2f | %.2f | %.0f | %s |\n", words, name, u.user+u.system, u.wall, float64(u.memory)/(1<<20), bytes)
}

// realDisk is a loop device with a filesystem of real files: those of /usr, in the order of
// their names, as far as they fit.
func (l *lab) realDisk(dir string) (string, error) {
	dev, err := l.loop(filepath.Join(dir, "disk.img"), l.vaultSize)
	if err != nil {
		return "", err
	}
	if _, err := l.do("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", dev); err != nil {
		return "", err
	}
	at, list := filepath.Join(dir, "mnt"), filepath.Join(dir, "list")
	if err := listFiles("/usr", list, l.vaultSize/10*8); err != nil {
		return "", err
	}
	if err := os.Mkdir(at, 0o700); err != nil {
		return "", err
	}
	_, err = l.do("sh", "-c", "mount "+dev+" "+at+" && tar -C /usr --no-recursion -T "+list+" -cf - | tar -C "+at+" -xf -; e=$?; umount "+at+"; exit $e")
	return dev, err
}

// listFiles writes the names of files below a folder, up to room bytes of them.
func listFiles(root, list string, room int64) error {
	var names strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if room -= info.Size(); room < 0 {
			return filepath.SkipAll
		}
		name, err := filepath.Rel(root, path)
		fmt.Fprintln(&names, name)
		return err
	})
	if err != nil {
		return err
	}
	return os.WriteFile(list, []byte(names.String()), 0o600)
}

// changeRuns writes random bytes to runs of blocks of 4 KiB at random places.
func changeRuns(dev string, size int64, runs, blocks int, rng *rand.Rand) error {
	f, err := os.OpenFile(dev, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	source := rand.NewChaCha8([32]byte{byte(rng.Uint32()), byte(rng.Uint32())})
	buf := make([]byte, blocks*4096)
	for range runs {
		source.Read(buf)
		if _, err := f.WriteAt(buf, rng.Int64N(size/4096-int64(blocks))*4096); err != nil {
			return err
		}
	}
	return f.Sync()
}

// changeDatabase writes as much as changeBlocks: half of it to a log, from front to back, the rest
// to pages of 8 KiB of a table of a quarter of the disk, some of them far more often than others.
func changeDatabase(dev string, size int64, blocks int, rng *rand.Rand) error {
	f, err := os.OpenFile(dev, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	const page = 8192
	table := uint64(size / 4 / page)
	source := rand.NewChaCha8([32]byte{byte(rng.Uint32()), byte(rng.Uint32())})
	pages := rand.NewZipf(rng, 1.1, 100, table-1)
	buf := make([]byte, page)
	for i := range int64(blocks * 4096 / page / 2) {
		for _, off := range []int64{size/4*3 + i*page, size/4 + int64(pages.Uint64()*2654435761%table)*page} {
			source.Read(buf)
			if _, err := f.WriteAt(buf, off); err != nil {
				return err
			}
		}
	}
	return f.Sync()
}

func treeBytes(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	return n, err
}
