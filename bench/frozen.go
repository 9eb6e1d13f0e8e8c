package main

import (
	"fmt"
	"os"
	"slices"
)

const frozenRounds = 20

// frozen measures how long a filesystem is frozen while it is written to.
func frozen(l *lab) error {
	const size = 2 << 30
	dev, err := l.loop(l.path("disk.img"), size)
	if err != nil {
		return err
	}
	at := l.path("mnt")
	if err := os.Mkdir(at, 0o700); err != nil {
		return err
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", dev}, {"mount", dev, at}} {
		if _, err := l.do(args[0], args[1:]...); err != nil {
			return err
		}
	}
	l.later(func() error { _, err := l.do("umount", at); return err })
	if _, _, err := l.mirror(dev, l.path("mirror.img")); err != nil {
		return err
	}
	l.stopTracking(dev)
	if err := l.load("--directory="+at, "--rw=randwrite", "--bs=64k", "--size=1g", "--rate=50m"); err != nil {
		return err
	}
	var ms, took, read sample
	for i := range 3 + frozenRounds {
		_, rep, err := l.mirror(dev, l.path("mirror.img"))
		if err != nil {
			return err
		}
		if i < 3 {
			continue // fio is still laying out its file
		}
		ms, took, read = append(ms, rep.FrozenMS), append(took, rep.TookMS), append(read, float64(rep.Read)/(1<<20))
	}
	fmt.Printf("## Frozen time\n\next4 on a loop device over tmpfs, fio writing 50 MB/s (64 KiB, buffered, random), %d incremental runs.\n\n", frozenRounds)
	fmt.Printf("| | median (min to max) |\n|---|---|\n| frozen, ms | **%s** |\n| whole run, ms | %s |\n| read, MiB | %s |\n\n",
		ms.spread("%.0f"), took.spread("%.0f"), read.spread("%.0f"))
	fmt.Printf("Distribution, ms:")
	for _, v := range slices.Sorted(slices.Values(ms)) {
		fmt.Printf(" %.0f", v)
	}
	fmt.Printf("; 90th percentile %.0f.\n\n", ms.at(0.9))
	return nil
}
