package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
)

const (
	changeSize   = 4 << 30
	changeRounds = 3
)

func newRNG() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

// change measures an incremental run after 1 % of the blocks of 4 GiB changed at
// random, beside programs that have to read everything.
func change(l *lab) error {
	dev, err := l.loop(l.path("disk.img"), changeSize)
	if err != nil {
		return err
	}
	if err := fillDevice(dev, changeSize); err != nil {
		return err
	}
	if _, _, err := l.mirror(dev, l.path("mirror.img")); err != nil {
		return err
	}
	l.stopTracking(dev)
	peers, err := l.peers(dev)
	if err != nil {
		return err
	}
	for _, p := range peers {
		for _, args := range p.prepare {
			if _, err := l.do(args[0], args[1:]...); err != nil {
				return err
			}
		}
	}
	var ours, readRatio, writeRatio sample
	theirs := make([]sample, len(peers))
	rng := newRNG()
	const blocks = changeSize / 4096 / 100
	for range changeRounds {
		if err := changeBlocks(dev, changeSize, blocks, rng); err != nil {
			return err
		}
		u, rep, err := l.mirror(dev, l.path("mirror.img"))
		if err != nil {
			return err
		}
		ours = append(ours, u.wall)
		readRatio = append(readRatio, float64(rep.Read)/(blocks*4096))
		writeRatio = append(writeRatio, float64(rep.Written)/(blocks*4096))
		for i, p := range peers {
			u, err := timed(p.command(l))
			if err != nil {
				return err
			}
			theirs[i] = append(theirs[i], u.wall)
		}
	}
	if _, err := l.do("cmp", dev, l.path("mirror.img")); err != nil {
		return err
	}
	fmt.Printf("## 1 %% of 4 GiB changed\n\n")
	fmt.Printf("Loop device over tmpfs full of random bytes; %d random blocks of 4 KiB change before each of %d rounds; targets on the same tmpfs, the repositories of restic and borg on the disk; the copy was compared at the end.\n\n", blocks, changeRounds)
	fmt.Printf("| | seconds, median (min to max) | tidemark / it |\n|---|---|---|\n| tidemark mirror | %s | |\n", ours.spread("%.3f"))
	for i, p := range peers {
		fmt.Printf("| %s | %s | %s |\n", p.name, theirs[i].spread("%.3f"), ours.over(theirs[i]).spread("%.4f"))
	}
	fmt.Printf("\nBytes read / bytes changed **%s**; written to the target / changed **%s** (the journal apart).\n\n",
		readRatio.spread("%.3f"), writeRatio.spread("%.3f"))
	return nil
}

// peer is a program that does the same in another way.
type peer struct {
	name    string
	prepare [][]string // the first copy
	again   []string
	shell   string // instead of again
}

func (p peer) command(l *lab) *exec.Cmd {
	if p.shell != "" {
		return l.command("sh", "-c", p.shell)
	}
	return l.command(p.again[0], p.again[1:]...)
}

// peers keeps the repositories of those that are not limited by the disk on disk:
// all together they would not fit in memory.
func (l *lab) peers(dev string) ([]peer, error) {
	disk, err := os.MkdirTemp("/var/tmp", "tidemark-bench-")
	if err != nil {
		return nil, err
	}
	l.later(func() error { return os.RemoveAll(disk) })
	resticRepo, borgRepo := filepath.Join(disk, "restic"), filepath.Join(disk, "borg")
	dd := []string{"dd", "if=" + dev, "of=" + l.path("dd.img"), "bs=4M", "iflag=direct", "conv=notrunc", "status=none"}
	rsync := []string{"rsync", "--inplace", "--no-whole-file", "--copy-devices", dev, l.path("rsync.img")}
	restic := "restic -q -r " + resticRepo + " backup --stdin --stdin-filename disk.img < " + dev
	borg := "borg create " + borgRepo + "::'{now:%s%f}' - < " + dev
	return []peer{
		{name: "dd bs=4M iflag=direct", prepare: [][]string{dd}, again: dd},
		{name: "rsync --inplace --no-whole-file", prepare: [][]string{rsync}, again: rsync},
		{name: "restic backup --stdin", prepare: [][]string{{"restic", "-q", "-r", resticRepo, "init"}, {"sh", "-c", restic}}, shell: restic},
		{name: "borg create, stdin", prepare: [][]string{{"borg", "init", "-e", "none", borgRepo}, {"sh", "-c", borg}}, shell: borg},
	}, nil
}
