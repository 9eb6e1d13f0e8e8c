package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

const (
	changeSize   = 4 << 30
	changeRounds = 3

	changeBlocksCount = changeSize / 4096 / 100
)

func newRNG() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

// change measures an incremental run after 1 % of the blocks of 4 GiB changed at
// random, beside programs that have to read everything: on a disk, where the disk
// is the limit, and in memory, where the processor is.
func change(l *lab) error {
	disk, err := os.MkdirTemp("/var/tmp", "tidemark-bench-")
	if err != nil {
		return err
	}
	l.later(func() error { return os.RemoveAll(disk) })
	fmt.Printf("## 1 %% of 4 GiB changed\n\n%d random blocks of 4 KiB of a loop device full of random bytes change before each of %d rounds; "+
		"the copy was compared at the end.\n\n", changeBlocksCount, changeRounds)
	if err := l.changeOn("on the machine's disk", disk, l.diskPeers); err != nil {
		return err
	}
	return l.changeOn("in memory (tmpfs)", l.dir, l.memoryPeers)
}

func (l *lab) changeOn(where, dir string, peersOf func(dev, dir string) []peer) error {
	dev, err := l.loop(filepath.Join(dir, "disk.img"), changeSize)
	if err != nil {
		return err
	}
	if err := fillDevice(dev, changeSize); err != nil {
		return err
	}
	mirror := filepath.Join(dir, "mirror.img")
	if _, _, err := l.mirror(dev, mirror); err != nil {
		return err
	}
	l.stopTracking(dev)
	peers := peersOf(dev, dir)
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
	for range changeRounds {
		if err := changeBlocks(dev, changeSize, changeBlocksCount, rng); err != nil {
			return err
		}
		syscall.Sync() // what one left to be written is not the next one's
		u, rep, err := l.mirror(dev, mirror)
		if err != nil {
			return err
		}
		ours = append(ours, u.wall)
		readRatio = append(readRatio, float64(rep.Read)/(changeBlocksCount*4096))
		writeRatio = append(writeRatio, float64(rep.Written)/(changeBlocksCount*4096))
		for i, p := range peers {
			syscall.Sync()
			u, err := timed(p.command(l))
			if err != nil {
				return err
			}
			theirs[i] = append(theirs[i], u.wall)
		}
	}
	if _, err := l.do("cmp", dev, mirror); err != nil {
		return err
	}
	fmt.Printf("| %s | seconds, median (min to max) | tidemark / it |\n|---|---|---|\n| tidemark mirror | %s | |\n", where, ours.spread("%.3f"))
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

// diskPeers has dd write past the page cache, so that it ends when the disk has it, as
// tidemark does.
func (l *lab) diskPeers(dev, dir string) []peer {
	resticRepo, borgRepo := filepath.Join(dir, "restic"), filepath.Join(dir, "borg")
	dd := []string{"dd", "if=" + dev, "of=" + filepath.Join(dir, "dd.img"), "bs=4M", "iflag=direct", "oflag=direct", "conv=notrunc", "status=none"}
	rsync := []string{"rsync", "--inplace", "--no-whole-file", "--copy-devices", dev, filepath.Join(dir, "rsync.img")}
	restic := "restic -q -r " + resticRepo + " backup --stdin --stdin-filename disk.img < " + dev
	borg := "borg create " + borgRepo + "::'{now:%s%f}' - < " + dev
	return []peer{
		{name: "dd bs=4M iflag=direct oflag=direct", prepare: [][]string{dd}, again: dd},
		{name: "rsync --inplace --no-whole-file", prepare: [][]string{rsync}, again: rsync},
		{name: "restic backup --stdin", prepare: [][]string{{"restic", "-q", "-r", resticRepo, "init"}, {"sh", "-c", restic}}, shell: restic},
		{name: "borg create, stdin", prepare: [][]string{{"borg", "init", "-e", "none", borgRepo}, {"sh", "-c", borg}}, shell: borg},
	}
}

// memoryPeers is dd alone: the repositories of the others do not fit in memory.
func (l *lab) memoryPeers(dev, dir string) []peer {
	dd := []string{"dd", "if=" + dev, "of=" + filepath.Join(dir, "dd.img"), "bs=4M", "iflag=direct", "conv=notrunc", "status=none"}
	return []peer{{name: "dd bs=4M iflag=direct", prepare: [][]string{dd}, again: dd}}
}
