package main

import (
	"fmt"
	"os"
)

const (
	firstSize   = 4 << 30
	firstRounds = 7
)

// first measures the first copy of a full device beside dd, which writes no
// checksums; dd is measured as people use it, and with the sync at the end that
// tidemark does too.
func first(l *lab) error {
	dev, err := l.loop("disk.img", firstSize)
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
	var ours, plain, synced sample
	for range firstRounds {
		for _, one := range []struct {
			conv string
			to   *sample
		}{{"sparse", &plain}, {"sparse,fsync", &synced}, {"", &ours}} {
			os.RemoveAll(l.path("copy.img"))
			os.RemoveAll(l.path("copy.img.tidemark"))
			args := []string{"dd", "if=" + dev, "of=" + l.path("copy.img"), "bs=4M", "iflag=direct", "conv=" + one.conv, "status=none"}
			if one.conv == "" {
				args = []string{l.tidemark, "mirror", dev, l.path("copy.img")}
			}
			u, err := timed(l.command(args[0], args[1:]...))
			if err != nil {
				return err
			}
			*one.to = append(*one.to, firstSize/u.wall/(1<<20))
		}
	}
	if _, err := l.do("cmp", dev, l.path("copy.img")); err != nil {
		return err
	}
	fmt.Printf("## First copy\n\n4 GiB of random bytes, loop device over tmpfs to a file on the same tmpfs, %d rounds in turns.\n\n", firstRounds)
	fmt.Printf("| | MiB/s, median (min to max) | tidemark / it |\n|---|---|---|\n| tidemark mirror, checksums included | %s | |\n", ours.spread("%.0f"))
	fmt.Printf("| dd bs=4M iflag=direct conv=sparse | %s | **%s** |\n", plain.spread("%.0f"), ours.over(plain).spread("%.2f"))
	fmt.Printf("| dd bs=4M iflag=direct conv=sparse,fsync | %s | %s |\n\n", synced.spread("%.0f"), ours.over(synced).spread("%.2f"))
	return nil
}
