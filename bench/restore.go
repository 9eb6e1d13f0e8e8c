package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

const (
	restoreSize   = 2 << 30
	restoreRounds = 7
	sparseSize    = "200G"
)

// sparse measures an image that is nothing but holes, beside cp, which asks the filesystem
// for them as well.
func sparse(l *lab) error {
	fmt.Printf("## Images of holes\n\nA file of 200 GiB without data, %d rounds in turns; seconds.\n\n", restoreRounds)
	src, copied, back := l.path("holes.img"), l.path("copy.img"), l.path("back.img")
	if _, err := l.do("truncate", "--size", sparseSize, src); err != nil {
		return err
	}
	steps := [][]string{
		{"cp", "--sparse=always", src, back},
		{l.tidemark, "mirror", src, copied},
		{l.tidemark, "mirror", src, copied},
		{l.tidemark, "verify", copied},
		{l.tidemark, "restore", copied, back},
	}
	took := make([]sample, len(steps))
	for range restoreRounds {
		os.RemoveAll(copied)
		os.RemoveAll(copied + ".tidemark")
		for i, step := range steps {
			os.RemoveAll(back)
			u, err := timed(l.command(step[0], step[1:]...))
			if err != nil {
				return err
			}
			took[i] = append(took[i], u.wall)
		}
	}
	fmt.Print("| | seconds, median (min to max) |\n|---|---|\n")
	for i, what := range []string{"cp --sparse=always", "tidemark mirror, first", "tidemark mirror, later", "tidemark verify", "tidemark restore"} {
		fmt.Printf("| %s | %s |\n", what, took[i].spread("%.3f"))
	}
	fmt.Println()
	return nil
}

// restore measures how a full copy gets back to an empty device, on the machine's disk,
// beside dd, which holds nothing against checksums.
func restore(l *lab) error {
	fmt.Printf("## Restore\n\n2 GiB of random bytes, from an image to an empty loop device on the machine's disk, synced, %d rounds in turns.\n\n", restoreRounds)
	disk, err := os.MkdirTemp("/var/tmp", "tidemark-bench-")
	if err != nil {
		return err
	}
	l.later(func() error { return os.RemoveAll(disk) })
	src, copied := filepath.Join(disk, "src.img"), filepath.Join(disk, "copy.img")
	if _, err := l.do("dd", "if=/dev/urandom", "of="+src, "bs=4M", fmt.Sprint("count=", restoreSize>>22), "status=none"); err != nil {
		return err
	}
	if _, err := l.do(l.tidemark, "mirror", src, copied); err != nil {
		return err
	}
	dev, err := l.loop(filepath.Join(disk, "back.img"), restoreSize)
	if err != nil {
		return err
	}
	var ours, theirs sample
	for i := range 2 * restoreRounds {
		if _, err := l.do("blkdiscard", dev); err != nil {
			return err
		}
		syscall.Sync()
		args, to := []string{l.tidemark, "restore", copied, dev}, &ours
		if i%2 == 1 {
			args, to = []string{"dd", "if=" + copied, "of=" + dev, "bs=4M", "oflag=direct", "conv=fsync", "status=none"}, &theirs
		}
		u, err := timed(l.command(args[0], args[1:]...))
		if err != nil {
			return err
		}
		*to = append(*to, restoreSize/u.wall/(1<<20))
	}
	if _, err := l.do("cmp", dev, copied); err != nil {
		return err
	}
	fmt.Printf("| | MiB/s, median (min to max) | tidemark / it |\n|---|---|---|\n")
	fmt.Printf("| tidemark restore, each block held against its checksum | %s | |\n", ours.spread("%.0f"))
	fmt.Printf("| dd bs=4M oflag=direct conv=fsync | %s | **%s** |\n\n", theirs.spread("%.0f"), ours.over(theirs).spread("%.2f"))
	return nil
}
