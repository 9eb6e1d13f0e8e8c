package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	prunedPoints = 100
	keptPoints   = 10
	listedPoints = 1000
	sparseDisk   = 16 << 40 // bytes
	sparseChange = 1 << 30  // of 100 GiB, 1 %
)

// many measures what grows with the number of points, or with the size of a disk, and not with
// what changed.
func many(l *lab) error {
	disk, err := os.MkdirTemp("/var/tmp", "tidemark-bench-")
	if err != nil {
		return err
	}
	l.later(func() error { return os.RemoveAll(disk) })
	fmt.Printf("## Many points, large disks\n\nPrune: %d points of a loop device with ext4 and files of /usr, 1 %% of its blocks changed at random before each, of which %d are kept.\n\n", prunedPoints, keptPoints)
	printVaultHead()
	for _, measure := range []func(*lab, string) error{pruneLarge, pruneMany, sparse16T, listMany} {
		if err := measure(l, disk); err != nil {
			return err
		}
	}
	fmt.Println()
	return nil
}

// pruneLarge measures tidemark alone: the others take a minute for each point of such a disk.
func pruneLarge(l *lab, dir string) error {
	return prune(l, filepath.Join(dir, "large"), 1)
}

// pruneMany measures each program on a disk of a sixteenth.
func pruneMany(l *lab, dir string) error {
	size := l.vaultSize
	l.vaultSize /= 16
	defer func() { l.vaultSize = size }()
	return prune(l, filepath.Join(dir, "small"), 3)
}

// prune makes points with the first of the programs, and has them forget most.
func prune(l *lab, dir string, programs int) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	dev, err := l.realDisk(dir)
	if err != nil {
		return err
	}
	depots, err := l.depots(dev, dir)
	if err != nil {
		return err
	}
	for _, d := range depots[:programs] {
		if err := l.makePoints(dev, d, prunedPoints); err != nil {
			return err
		}
		if err := l.measurePrune(d); err != nil {
			return err
		}
	}
	return nil
}

// makePoints makes points with a program, 1 % of the disk changed at random before each.
func (l *lab) makePoints(dev string, d depot, n int) error {
	if _, err := l.do("sh", "-c", d.init); err != nil {
		return err
	}
	rng := newRNG()
	for range n {
		if err := changeBlocks(dev, l.vaultSize, l.vaultBlocks(), rng); err != nil {
			return err
		}
		if _, err := l.do("sh", "-c", d.backup); err != nil {
			return err
		}
	}
	return nil
}

func (l *lab) measurePrune(d depot) error {
	syscall.Sync()
	before, err := treeBytes(d.repo)
	if err != nil {
		return err
	}
	u, err := timed(l.command("sh", "-c", d.prune))
	if err != nil {
		return err
	}
	after, err := treeBytes(d.repo)
	if err != nil {
		return err
	}
	printVault(fmt.Sprintf("prune of %d points of %d MiB to %d", prunedPoints, l.vaultSize>>20, keptPoints), d.name, u, fmt.Sprintf("%.1f", float64(after-before)/1e6))
	return nil
}

// sparse16T makes two points of an image that is nearly all holes.
func sparse16T(l *lab, dir string) error {
	image, v := l.path("16T.img"), filepath.Join(dir, "16T")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(image, sparseDisk); err != nil {
		return err
	}
	if _, err := l.do(l.tidemark, "vault", "init", "--no-encryption", v); err != nil {
		return err
	}
	rng := newRNG()
	for i, words := range []string{"first copy of 16 TiB of holes", "the same, 1 GiB of blocks of 4 KiB written, in groups all over it"} {
		if i > 0 {
			if err := changeGroups(image, sparseDisk, sparseChange, rng); err != nil {
				return err
			}
		}
		before, err := treeBytes(v)
		if err != nil {
			return err
		}
		u, err := timed(l.command(l.tidemark, "backup", "--quiet", "--no-encryption", image, v))
		if err != nil {
			return err
		}
		after, err := treeBytes(v)
		if err != nil {
			return err
		}
		printVault(words, "tidemark", u, fmt.Sprintf("%.1f", float64(after-before)/1e6))
	}
	return errors.Join(os.Remove(image), os.RemoveAll(v))
}

// changeGroups writes random bytes to so many bytes of a disk: blocks of 4 KiB, 64 of them within
// each of places of 16 MiB all over it.
func changeGroups(path string, size, bytes int64, rng *rand.Rand) error {
	const block, group, place = 4096, 64, 16 << 20
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	source := rand.NewChaCha8([32]byte{byte(rng.Uint32()), byte(rng.Uint32())})
	buf := make([]byte, block)
	for range bytes / block / group {
		at := rng.Int64N(size/place) * place
		for range group {
			source.Read(buf)
			if _, err := f.WriteAt(buf, at+rng.Int64N(place/block)*block); err != nil {
				return err
			}
		}
	}
	return f.Sync()
}

// listMany lists many points of a vault on a server of S3 of this machine, with an empty cache.
func listMany(l *lab, dir string) error {
	endpoint, requests, err := l.s3(filepath.Join(dir, "s3"))
	if err != nil {
		return err
	}
	address := "s3://bucket/vault"
	key, err := manyPoints(address, endpoint)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(l.path("cache")); err != nil {
		return err
	}
	keyFile := filepath.Join(dir, "s3key")
	if err := os.WriteFile(keyFile, []byte(key.String()+"\n"), 0o600); err != nil {
		return err
	}
	before := requests.Load()
	u, err := timed(l.command(l.tidemark, "points", "--identity", keyFile, "--endpoint", endpoint, address))
	if err != nil {
		return err
	}
	if lines := strings.Count(u.out, "\n") + 1; lines < listedPoints {
		return fmt.Errorf("%d lines of %d points", lines, listedPoints)
	}
	printVault(fmt.Sprintf("list of %d points on S3, no cache, %d requests", listedPoints, requests.Load()-before), "tidemark", u, "")
	return nil
}
