package main

import "fmt"

const idleRounds = 10

// idle measures a run that finds nothing changed on a device of 1 TiB.
func idle(l *lab) error {
	const size = 1 << 40
	dev, err := l.loop(l.path("disk.img"), size)
	if err != nil {
		return err
	}
	if err := changeBlocks(dev, size/4096, 1000, newRNG()); err != nil {
		return err
	}
	firstRun, rep, err := l.mirror(dev, l.path("mirror.img"))
	if err != nil {
		return err
	}
	l.stopTracking(dev)
	var wall, memory sample
	for range idleRounds {
		u, again, err := l.mirror(dev, l.path("mirror.img"))
		if err != nil {
			return err
		}
		if again.Read != 0 || again.Mode != "incremental" {
			return fmt.Errorf("read %d bytes in mode %s", again.Read, again.Mode)
		}
		wall, memory = append(wall, u.wall*1000), append(memory, float64(u.memory)/(1<<20))
	}
	fmt.Printf("## Nothing changed on 1 TiB\n\n")
	fmt.Printf("Sparse loop device of 1 TiB over tmpfs; the first run (%s, %.0f s) is not counted; %d runs.\n\n", rep.Mode, firstRun.wall, idleRounds)
	fmt.Printf("| | median (min to max) |\n|---|---|\n| wall time, ms | **%s** |\n| peak memory of the program, MiB | **%s** |\n\n",
		wall.spread("%.0f"), memory.spread("%.0f"))
	return nil
}
