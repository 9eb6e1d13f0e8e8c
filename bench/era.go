package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"

	"tidemark/format/era"
)

const (
	eraBlocks       = 1 << 24
	eraMetadataSize = 128 << 20 // bytes, enough for them
	eraRounds       = 3
)

// peers are programs of others that are not on every machine.
type peers struct {
	eraCopy, eraApply string // the C tools
}

// eraTools measures reading metadata beside thin-provisioning-tools: Debian 12's,
// which is installed, and Debian 13's, which scripts/bench-tools fetches.
func eraTools(l *lab) error {
	fmt.Printf("## dm-era tools\n\nMetadata of %d blocks in memory, three writesets, nothing else cached; %d rounds in turns, output to a file in memory, compared.\n\n", eraBlocks, eraRounds)
	newer, err := l.do("scripts/bench-tools")
	if err != nil {
		return err
	}
	image := l.path("meta.img")
	if err := writeMetadata(image); err != nil {
		return err
	}
	fmt.Print("| | user time, s | it / tidemark | wall time, s | peak memory, MiB |\n|---|---|---|---|---|\n")
	for _, job := range [][]string{{"invalidate", "--written-since", "50"}, {"invalidate", "--written-since", "99"}, {"dump"}} {
		if err := l.toolJob("era", image, newer, job, true); err != nil {
			return err
		}
	}
	fmt.Println()
	return nil
}

// writeMetadata writes metadata of a device that is written to all over. The seed
// is fixed: figures must be comparable.
func writeMetadata(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(eraMetadataSize); err != nil {
		return err
	}
	return feedMetadata(era.NewBuilder(f, eraMetadataSize), rand.New(rand.NewPCG(1, 2)))
}

func feedMetadata(s era.Sink, r *rand.Rand) error {
	const atOnce = 1 << 16 // blocks
	if err := s.Begin(era.Header{BlockSectors: 128, NrBlocks: eraBlocks, Era: 100}); err != nil {
		return err
	}
	words := make([]uint64, atOnce/64)
	for e := era.Era(98); e <= 100; e++ {
		if err := s.BeginWriteset(e, eraBlocks); err != nil {
			return err
		}
		for range eraBlocks / atOnce {
			clear(words)
			for range 100 {
				words[r.IntN(len(words))] |= r.Uint64() & r.Uint64()
			}
			if err := s.Bits(words, atOnce); err != nil {
				return err
			}
		}
		if err := s.EndWriteset(); err != nil {
			return err
		}
	}
	if err := s.BeginArray(); err != nil {
		return err
	}
	eras := make([]era.Era, 0, atOnce)
	for at := 0; at < eraBlocks; {
		run, e := min(1+r.IntN(64), eraBlocks-at), era.Era(r.IntN(98))
		for range run {
			eras = append(eras, e)
		}
		if at += run; len(eras) >= atOnce-64 || at == eraBlocks {
			if err := s.Eras(eras); err != nil {
				return err
			}
			eras = eras[:0]
		}
	}
	if err := s.EndArray(); err != nil {
		return err
	}
	return s.End()
}

const (
	streamSize   = 4 << 30
	streamRounds = 5
)

// stream measures era copy and era apply in a pipe beside the C tools.
func stream(l *lab) error {
	fmt.Printf("## era copy and era apply\n\nAll of %d GiB of random bytes in one range, from a loop device over tmpfs through a pipe to an image file on the machine's disk, synced; %d rounds in turns.\n\n", streamSize>>30, streamRounds)
	if l.peers.eraCopy == "" || l.peers.eraApply == "" {
		fmt.Print("Not measured: give the C tools with -era-copy and -era-apply.\n\n")
		return nil
	}
	dev, err := l.loop(l.path("disk.img"), streamSize)
	if err != nil {
		return err
	}
	if err := fillDevice(dev, streamSize); err != nil {
		return err
	}
	list := l.path("list.xml")
	if err := os.WriteFile(list, fmt.Appendf(nil, "<blocks>\n  <range begin=\"0\" end = \"%d\"/>\n</blocks>\n", streamSize/(512<<10)), 0o600); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/var/tmp", "tidemark-bench-")
	if err != nil {
		return err
	}
	l.later(func() error { return os.RemoveAll(dir) })
	ours := fmt.Sprintf("%s era copy --block-size 512K %s < %s | %s era apply ", l.tidemark, dev, list, l.tidemark)
	theirs := fmt.Sprintf("%s 1024 %s < %s | %s ", l.peers.eraCopy, dev, list, l.peers.eraApply)
	fmt.Print("| | MiB/s, median (min to max) | tidemark / it | peak memory, MiB |\n|---|---|---|---|\n")
	for _, fresh := range []bool{true, false} {
		if err := l.streamJob(filepath.Join(dir, "copy.img"), fresh, ours, theirs); err != nil {
			return err
		}
		if _, err := l.do("cmp", dev, filepath.Join(dir, "copy.img")); err != nil {
			return err
		}
	}
	fmt.Println()
	return nil
}

func (l *lab) streamJob(image string, fresh bool, ours, theirs string) error {
	what := "old image, journal included"
	if fresh {
		what = "new image"
	}
	var speeds, memory [2]sample
	for range streamRounds {
		for i, pipe := range []string{theirs, ours} {
			if fresh {
				os.RemoveAll(image)
			}
			syscall.Sync() // what one left to be written is not the next one's
			u, err := timed(l.command("bash", "-c", "set -o pipefail; "+pipe+image))
			if err != nil {
				return err
			}
			speeds[i] = append(speeds[i], streamSize/u.wall/(1<<20))
			memory[i] = append(memory[i], float64(u.memory)/(1<<20))
		}
	}
	fmt.Printf("| era copy and era apply, %s | %s | | %.0f |\n", what, speeds[1].spread("%.0f"), memory[1].median())
	fmt.Printf("| era_copy and era_apply in C, no journal | %s | **%s** | %.0f |\n", speeds[0].spread("%.0f"), speeds[1].over(speeds[0]).spread("%.2f"), memory[0].median())
	return nil
}
