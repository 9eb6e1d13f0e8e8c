//go:build linux

package snapshot_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/fiemap"
	"tidemark/snapshot"
	"tidemark/test/vm/guest"
	"tidemark/test/vm/guest/instant"
)

// dattoNames gives tidemark the names of dattobd's programs.
func dattoNames(t *testing.T) {
	t.Helper()
	for _, name := range []string{"dbdctl", "update-img", "img-merge"} {
		if err := os.Symlink("/bin/tidemark", "/bin/"+name); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
}

// adopted makes an adopted disk of so many sectors, with a filesystem that is mounted, and returns
// the disk below, the device, and where.
func adopted(t *testing.T, kind string, sectors int) (plain, dev, at string) {
	t.Helper()
	dattoNames(t)
	plain, dev, at = guest.Disk(t, "data"), "/dev/mapper/sda1", t.TempDir()
	guest.Run(t, "dmsetup", "create", "sda1", "--uuid", "TIDEMARK-LINEAR-sda1", "--table", fmt.Sprintf("0 %d linear %s 0", sectors, plain))
	t.Cleanup(func() { guest.Run(t, "dmsetup", "remove", "--retry", "sda1") })
	mkfs(t, kind, dev)
	guest.Run(t, "mount", dev, at)
	t.Cleanup(func() {
		sweep(t)
		bare(t, at)
		if left, _ := filepath.Glob("/dev/datto*"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		if out := guest.Run(t, "tidemark", "track", "status"); !strings.Contains(out, "nothing is tracked") {
			t.Errorf("left behind: %s", out)
		}
		guest.Run(t, "umount", at)
	})
	return plain, dev, at
}

// sh runs a line of shell words, each "$x" of which has been put in.
func sh(t *testing.T, format string, args ...any) string {
	t.Helper()
	words := strings.Fields(fmt.Sprintf(format, args...))
	return guest.Run(t, words[0], words[1:]...)
}

// use is what users do.
func use(t *testing.T, at string, round int) {
	t.Helper()
	sh(t, "dd if=/dev/urandom of=%s/file%d bs=64k count=12 conv=fsync status=none", at, round)
	sh(t, "dd if=/dev/urandom of=%s/kept bs=4k count=5 seek=%d conv=notrunc,fsync status=none", at, 7*round)
	if round > 1 {
		if err := os.Remove(fmt.Sprintf("%s/file%d", at, round-1)); err != nil {
			t.Fatal(err)
		}
	}
	sh(t, "sync")
}

// What the README of dattobd has under "Performing Incremental Backups", steps 2 to 9, with an
// adopted disk; two rounds with ext4, one with XFS.
func TestIncrementalBackupsOfDattobd(t *testing.T) {
	for kind, merges := range map[string][]string{"ext4": {"update-img", "img-merge"}, "xfs": {"img-merge"}} {
		t.Run(kind, func(t *testing.T) {
			plain, _, at := adopted(t, kind, sectors)
			backup := filepath.Join(t.TempDir(), "sda1-bkp")
			use(t, at, 1)
			sh(t, "dbdctl setup-snapshot %s %s/.datto 0", plain, at) // 2
			use(t, at, 2)
			sh(t, "dd if=/dev/datto0 of=%s bs=1M status=none", backup) // 3
			same(t, backup, kind)
			list, next := at+"/.datto", at+"/.datto1"
			for round, merge := range merges {
				use(t, at, 3+3*round)
				if err := os.Remove(list); !errors.Is(err, unix.EPERM) {
					t.Errorf("the COW file can be removed: %v", err)
				}
				sh(t, "dbdctl transition-to-incremental 0") // 4
				if _, err := os.Lstat("/dev/datto0"); err == nil {
					t.Error("an incremental one has an image")
				}
				use(t, at, 4+3*round) // 5
				stop := instant.Load(t, at)
				settle(t, "sda1")
				stop()
				if round > 0 { // a list that is there stays as long as nothing takes its place
					if out, err := exec.Command("dbdctl", "transition-to-snapshot", "-f", "60", next, "0").CombinedOutput(); err == nil || !strings.Contains(string(out), "No space left") {
						t.Errorf("%v: %s", err, out)
					}
					if _, err := os.Stat(next); err != nil {
						t.Error(err)
					}
				}
				sh(t, "dbdctl transition-to-snapshot %s 0", next) // 6
				use(t, at, 5+3*round)
				if out, err := exec.Command(merge, "/dev/datto0", next, backup).CombinedOutput(); err == nil {
					t.Errorf("the COW file of the snapshot is a list: %s", out)
				}
				if out := sh(t, "%s /dev/datto0 %s %s", merge, list, backup); !strings.Contains(out, "0 errors") { // 7
					t.Error(out)
				}
				same(t, backup, kind)
				if round == 0 {
					guest.Run(t, "cp", list, "/stale")
				} else if out, err := exec.Command(merge, "/dev/datto0", "/stale", backup).CombinedOutput(); err == nil || !strings.Contains(string(out), "does not immediately go before") {
					t.Errorf("a list of before: %v: %s", err, out)
				}
				if round > 0 {
					sh(t, "rm %s", list) // 8
				}
				list, next = next, list // 9
			}
			if got := dattoInfo(t, "0"); got.State != 3 || got.Sequence != len(merges)+1 || at+got.COWFile != list || got.BlockDevice != plain || got.Changed == 0 || got.Error != 0 {
				t.Errorf("%+v", got)
			}
			sh(t, "dbdctl destroy 0")
		})
	}
}

// same checks that a copy is the image /dev/datto0, every byte, and a sound filesystem.
func same(t *testing.T, backup, kind string) {
	t.Helper()
	instant.Compare(t, instant.MustRead(t, "/dev/datto0"), instant.MustRead(t, backup))
	if kind == "ext4" {
		guest.Run(t, "e2fsck", "-fn", backup)
		return
	}
	there := t.TempDir()
	sh(t, "mount -o ro,norecovery,nouuid,loop %s %s", backup, there)
	sh(t, "umount %s", there)
}

type dattoDevice struct {
	Minor       int
	COWFile     string `json:"cow_file"`
	BlockDevice string `json:"block_device"`
	Sequence    int    `json:"seq_id"`
	UUID        string
	Changed     int `json:"nr_changed_blocks"`
	Error       int
	State       int
}

func dattoInfo(t *testing.T, minor string) dattoDevice {
	t.Helper()
	var info struct{ Devices []dattoDevice }
	if err := json.Unmarshal([]byte(sh(t, "dbdctl info %s", minor)), &info); err != nil || len(info.Devices) != 1 {
		t.Fatalf("%+v, %v", info, err)
	}
	return info.Devices[0]
}

// What dbdctl refuses it refuses with the driver's errors, before anything is made.
func TestErrorsOfDbdctl(t *testing.T) {
	plain, dev, at := adopted(t, "ext4", sectors)
	guest.WriteFile(t, at+"/other", "no list")
	refused := func(want, line string) {
		t.Helper()
		words := strings.Fields(line)
		out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 255 || !strings.Contains(string(out), "check dmesg for more info: "+want+"\n") {
			t.Errorf("%s: %v: %s", line, err, out)
		}
	}
	for _, c := range [][2]string{
		{"Invalid argument", "setup-snapshot " + plain + " " + at + "/.datto 24"},
		{"Invalid argument", "setup-snapshot " + guest.Disk(t, "store") + " " + at + "/.datto 0"},
		{"Block device required", "setup-snapshot " + at + " " + at + "/.datto 0"},
		{"No such file or directory", "setup-snapshot /dev/none " + at + "/.datto 0"},
		{"Is a directory", "setup-snapshot " + plain + " " + at + " 0"},
		{"Invalid argument", "setup-snapshot " + plain + " /.datto 0"},
		{"No such file or directory", "setup-snapshot " + plain + " " + at + "/none/.datto 0"},
		{"No space left on device", "setup-snapshot -f 60 " + plain + " " + at + "/.datto 0"},
		{"File exists", "setup-snapshot " + plain + " " + at + "/other 0"},
		{"No such file or directory", "destroy 0"},
		{"Invalid argument", "destroy 24"},
		{"No such file or directory", "transition-to-incremental 0"},
		{"No such file or directory", "transition-to-snapshot " + at + "/.datto 0"},
		{"No such file or directory", "reconfigure 0"},
		{"No such file or directory", "expand-cow-file 1 0"},
		{"No such file or directory", "info 0"},
		{"Invalid argument", "reload-snapshot " + plain + " /.datto 0"},
		{"Invalid argument", "reload-incremental " + plain + " /.datto 0"},
	} {
		refused(c[0], "dbdctl "+c[1])
	}
	bare(t, at)
	sh(t, "dbdctl setup-snapshot -c 1000000 -f 8 %s %s/.datto 3", dev, at)
	refused("Device or resource busy", "dbdctl setup-snapshot "+plain+" "+at+"/.datto1 3")
	refused("Invalid argument", "dbdctl setup-snapshot "+dev+" "+at+"/.datto1 4")
	refused("Invalid argument", "dbdctl transition-to-snapshot "+at+"/.datto1 3")
	refused("Device or resource busy", "dbdctl reload-incremental "+plain+" /.datto 3")
	reader, err := os.Open("/dev/datto3")
	if err != nil {
		t.Fatal(err)
	}
	refused("Device or resource busy", "dbdctl transition-to-incremental 3")
	refused("Device or resource busy", "dbdctl destroy 3")
	reader.Close()
	sh(t, "dbdctl reconfigure -c 2000000 3")
	// What is not mounted stays as it is.
	sh(t, "umount %s", at)
	refused("Invalid argument", "dbdctl transition-to-incremental 3")
	if got := dattoInfo(t, "3"); got.State != 3 || got.Error != 0 {
		t.Errorf("%+v", got)
	}
	sh(t, "mount %s %s", dev, at)
	// To expand, and then anything.
	sh(t, "dbdctl expand-cow-file 4 3")
	sh(t, "e2fsck -fn /dev/datto3")
	refused("No space left on device", "dbdctl expand-cow-file 100 3")
	refused("Operation not supported", "dbdctl reconfigure-auto-expand -r 1 4 3")
	sh(t, "dbdctl transition-to-incremental 3")
	if got := dattoInfo(t, ""); got.Minor != 3 || got.State != 2 || got.Sequence != 1 || len(got.UUID) != 32 {
		t.Errorf("%+v", got)
	}
	refused("Invalid argument", "dbdctl transition-to-incremental 3")
	refused("Invalid argument", "dbdctl expand-cow-file 4 3")
	refused("Invalid argument", "dbdctl transition-to-snapshot "+at+"/.datto 3")
	refused("File exists", "dbdctl transition-to-snapshot "+at+"/other 3")
	// What the tracking cannot vouch for is no list.
	sh(t, "tidemark track stop %s", dev)
	refused("Invalid argument", "dbdctl transition-to-snapshot "+at+"/.datto1 3")
	if got := dattoInfo(t, "3"); got.Error >= 0 {
		t.Errorf("%+v", got)
	}
	if out, err := exec.Command("tidemark", "snapshot", "to-snapshot", "datto3").CombinedOutput(); err == nil || !strings.Contains(string(out), "mark lost: the device is not tracked any more") {
		t.Errorf("%v: %s", err, out)
	}
	sh(t, "dbdctl destroy 3")
}

// Stores elsewhere in modes: a device takes the next store although the superblock was saved there,
// what is read of a record before another command changes it is not acted on, and a file of another
// filesystem that covers the store's stays.
func TestModesAndStores(t *testing.T) {
	_, dev, at := adopted(t, "ext4", sectors)
	if out, err := exec.Command("tidemark", "snapshot", "create", "--track", "--writable", dev).CombinedOutput(); err == nil || !strings.Contains(string(out), "no list of changes has") {
		t.Errorf("%v: %s", err, out)
	}
	create(t, "--track", "--name", "d", "--store", guest.Disk(t, "store"), dev)
	sh(t, "dd if=%s of=%s bs=512 count=1 conv=notrunc iflag=direct oflag=direct status=none", dev, dev)
	sh(t, "tidemark snapshot to-incremental d")
	stale, err := snapshot.Find(options, "d")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tidemark", "snapshot", "to-snapshot", "d", "--list", guest.Disk(t, "store")).CombinedOutput(); err == nil {
		t.Errorf("the list is the store: %s", out)
	}
	sh(t, "tidemark snapshot to-snapshot d --max-freeze 1m")
	destroy(t, stale)
	bare(t, at)

	if err := os.Mkdir(at+"/sub", 0o700); err != nil {
		t.Fatal(err)
	}
	store := at + "/sub/store"
	create(t, "--track", "--name", "c", "--store", store, dev)
	sh(t, "mount -t tmpfs none %s/sub", at)
	guest.WriteFile(t, store, "of another")
	if out, err := exec.Command("tidemark", "snapshot", "destroy", "c").CombinedOutput(); err == nil || !strings.Contains(string(out), "another one covers it") {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := os.Stat(store); err != nil {
		t.Error(err)
	}
	sh(t, "umount %s/sub", at)
	sh(t, "tidemark snapshot destroy c")
	if _, err := os.Stat(store); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the store is there: %v", err)
	}
}

// rounds is a copy that is brought from one snapshot to the next.
type rounds struct {
	name, dev, image, copy string
}

// next takes the next snapshot, and brings the copy to it.
func (r rounds) next(t *testing.T) {
	t.Helper()
	list := r.copy + ".changes"
	sh(t, "tidemark snapshot to-snapshot --max-freeze 1m %s --list %s", r.name, list)
	r.merge(t, list)
}

func (r rounds) merge(t *testing.T, list string) {
	t.Helper()
	sh(t, "tidemark datto merge %s %s %s", r.image, list, r.copy)
	instant.Compare(t, instant.MustRead(t, r.image), instant.MustRead(t, r.copy))
}

// What dattobd loses is in the lists: discards, write-zeroes, a short last block, what is written
// around a remount, and after an overflow. A crash ends a chain, which is told.
func TestTrapsOfDattobd(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			_, dev, at := adopted(t, kind, sectors+3)
			r := rounds{"n", dev, dev + "+n", filepath.Join(t.TempDir(), "copy")}
			use(t, at, 1)
			sh(t, "dd if=/dev/urandom of=%s/trim bs=1M count=2 conv=fsync status=none", at)
			sh(t, "tidemark snapshot create --max-freeze 1m --track --name n --size 4M %s", dev)
			sh(t, "dd if=%s of=%s bs=1M status=none", r.image, r.copy)

			zeroOut(t, dev, at+"/kept")
			tail(t, dev, "first")
			sh(t, "umount %s", at)
			sh(t, "mount %s %s", dev, at)
			instant.Compare(t, instant.MustRead(t, r.image), instant.MustRead(t, r.copy))
			sh(t, "tidemark snapshot to-incremental n")
			sh(t, "rm %s/trim", at)
			sh(t, "sync")
			sh(t, "fstrim %s", at)
			zeroOut(t, dev, at+"/file1")
			tail(t, dev, "second")
			use(t, at, 2)
			sh(t, "umount %s", at)
			sh(t, "mount %s %s", dev, at)
			r.next(t)

			// The store is full: the chain goes on.
			sh(t, "dd if=/dev/urandom of=%s/large bs=1M count=12 oflag=direct status=none", at)
			if out, err := exec.Command("tidemark", "snapshot", "status", "n").CombinedOutput(); err == nil {
				t.Errorf("12 MiB fit into 4: %s", out)
			}
			sh(t, "tidemark snapshot to-incremental n")
			if out := sh(t, "tidemark snapshot status n"); !strings.Contains(out, "incremental, ok") {
				t.Error(out)
			}
			if got := sh(t, "tidemark snapshot events n --follow --json"); !strings.Contains(got, `"event":"incremental"`) {
				t.Error(got)
			}
			r.next(t)

			// So does a crash, and that is told; a new one begins.
			sh(t, "tidemark snapshot to-incremental n")
			bootAgain(t)
			if out, err := exec.Command("tidemark", "snapshot", "to-snapshot", "n").CombinedOutput(); err == nil || !strings.Contains(string(out), "the machine was rebooted since") {
				t.Errorf("%v: %s", err, out)
			}
			sh(t, "tidemark snapshot destroy n")
			sh(t, "tidemark snapshot create --max-freeze 1m --track --name n --size 4M %s", dev)
			sh(t, "tidemark snapshot destroy n")
		})
	}
}

// zeroOut has the kernel zero where a file lies (WRITE_ZEROES), past the filesystem.
func zeroOut(t *testing.T, dev, path string) {
	t.Helper()
	sh(t, "sync")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	extents, err := fiemap.Of(f)
	if err != nil || len(extents) == 0 {
		t.Fatal(extents, err)
	}
	e := extents[0]
	sh(t, "fallocate --zero-range --keep-size --offset %d --length %d %s", e.Physical, e.Len, dev)
}

// tail writes the last 3 sectors of a device.
func tail(t *testing.T, dev, text string) {
	t.Helper()
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_DSYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(strings.Repeat(text, 512)[:3*512]), bytes); err != nil {
		t.Fatal(err)
	}
}

// A change of the mode that is killed at any moment has happened or not; two volumes are of one
// instant, and the lists of them all bring copies from one snapshot to the next.
func TestKilledChangesOfTheMode(t *testing.T) {
	var all []rounds
	var devs, folders []string
	for i, kind := range []string{"ext4", "xfs"} {
		name, at := origin(t, i, kind)
		dev := "/dev/mapper/" + name
		if i == 0 {
			t.Cleanup(instant.Load(t, at))
		}
		use(t, at, 1)
		all = append(all, rounds{"k", dev, dev + "+k", filepath.Join(t.TempDir(), "copy")})
		devs, folders = append(devs, dev), append(folders, at)
	}
	sh(t, "tidemark snapshot create --max-freeze 1m --track --name k --size 14M %s", strings.Join(devs, " "))
	for _, r := range all {
		sh(t, "dd if=%s of=%s bs=1M status=none", r.image, r.copy)
	}
	merge := func() {
		t.Helper()
		for _, r := range all {
			r.merge(t, options.StateDir+"/snapshots/k+"+filepath.Base(r.dev)+".datto")
		}
	}
	incremental := func() bool {
		t.Helper()
		sh(t, "tidemark snapshot repair")
		var st []struct {
			Incremental bool
			Lost        string
		}
		if err := json.Unmarshal([]byte(sh(t, "tidemark snapshot status --json k")), &st); err != nil || len(st) != 1 || st[0].Lost != "" {
			t.Fatalf("%+v, %v", st, err)
		}
		return st[0].Incremental
	}
	const tries = 3
	took := map[string]time.Duration{}
	for i := range 2 * tries {
		word := "to-incremental"
		if incremental() {
			word = "to-snapshot --max-freeze 1m"
		}
		limit := time.Minute
		if i > 1 {
			limit = took[word] * time.Duration(i%tries+1) / (tries + 1)
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		began := time.Now()
		_ = exec.CommandContext(ctx, "tidemark", append(strings.Fields("snapshot "+word), "k")...).Run() // killed, or not
		cancel()
		if i < 2 {
			took[word] = time.Since(began)
		}
		if is := incremental(); strings.HasPrefix(word, "to-snapshot") && !is {
			merge()
		}
		settle(t, "X0")
		use(t, folders[1], 2+i)
	}
	if !incremental() {
		sh(t, "tidemark snapshot to-incremental k")
	}
	sh(t, "tidemark snapshot to-snapshot --max-freeze 1m k")
	merge()
	sh(t, "tidemark snapshot destroy k")
}
