package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

const (
	firstSize   = 4 << 30
	firstRounds = 7
)

// first measures the first copy of a full device beside dd, which writes no
// checksums; dd is measured as people use it, and with the sync at the end that
// tidemark does too. In memory the processor is the limit, on a disk the disk.
func first(l *lab) error {
	fmt.Printf("## First copy\n\n4 GiB of random bytes, from a loop device to an image file, %d rounds in turns.\n\n", firstRounds)
	disk, err := os.MkdirTemp("/var/tmp", "tidemark-bench-")
	if err != nil {
		return err
	}
	l.later(func() error { return os.RemoveAll(disk) })
	if err := l.firstOn("on the machine's disk", disk); err != nil {
		return err
	}
	return l.firstOn("in memory (tmpfs)", l.dir)
}

func (l *lab) firstOn(where, dir string) error {
	dev, err := l.loop(filepath.Join(dir, "disk.img"), firstSize)
	if err != nil {
		return err
	}
	if err := fillDevice(dev, firstSize); err != nil {
		return err
	}
	if _, err := l.do(l.tidemark, "track", "start", dev); err != nil {
		return err
	}
	l.stopTracking(dev)
	copied := filepath.Join(dir, "copy.img")
	var ours, plain, synced sample
	for range firstRounds {
		for _, one := range []struct {
			conv string
			to   *sample
		}{{"sparse", &plain}, {"sparse,fsync", &synced}, {"", &ours}} {
			os.RemoveAll(copied)
			os.RemoveAll(copied + ".tidemark")
			syscall.Sync() // what one left to be written is not the next one's
			args := []string{"dd", "if=" + dev, "of=" + copied, "bs=4M", "iflag=direct", "conv=" + one.conv, "status=none"}
			if one.conv == "" {
				args = []string{l.tidemark, "mirror", dev, copied}
			}
			u, err := timed(l.command(args[0], args[1:]...))
			if err != nil {
				return err
			}
			*one.to = append(*one.to, firstSize/u.wall/(1<<20))
		}
	}
	if _, err := l.do("cmp", dev, copied); err != nil {
		return err
	}
	fmt.Printf("| %s | MiB/s, median (min to max) | tidemark / it |\n|---|---|---|\n", where)
	fmt.Printf("| tidemark mirror, checksums included | %s | |\n", ours.spread("%.0f"))
	fmt.Printf("| dd bs=4M iflag=direct conv=sparse,fsync | %s | **%s** |\n", synced.spread("%.0f"), ours.over(synced).spread("%.2f"))
	fmt.Printf("| dd bs=4M iflag=direct conv=sparse | %s | **%s** |\n\n", plain.spread("%.0f"), ours.over(plain).spread("%.2f"))
	return nil
}
