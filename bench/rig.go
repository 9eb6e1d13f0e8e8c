package main

import (
	"fmt"
	"regexp"
	"strconv"
)

const rigRounds = 9

// rig measures what remembering writes costs in the kernels of test/vm, which have
// dm-era: our tracker, dm-era and neither.
func rig(l *lab) error {
	fmt.Printf("## dm-era's cost beside the tracker's\n\nfio, 4 KiB random writes, direct, queue depth 16, a virtio disk of 1 GiB in an emulated guest of 2 processors, dm-era with blocks of 64 KiB; %d rounds of 3 s in turns. Emulation makes the processor's part far larger than it is.\n\n", rigRounds)
	figures, err := l.inRig("TestWriteOverhead", "-overhead-rounds", rigRounds)
	if err != nil {
		return err
	}
	for _, kernel := range []string{"6.1", "6.12", "newest"} {
		neither := figures[kernel+" neither"]
		fmt.Printf("| Linux %s | IOPS, median (min to max) | it / neither |\n|---|---|---|\n", kernel)
		for _, k := range []struct{ name, words string }{
			{"neither", "neither"},
			{"bpf", "tidemark's tracker"},
			{"era-new", "dm-era, an era that begins"},
			{"era-on", "dm-era, on in the same era"},
		} {
			s := figures[kernel+" "+k.name]
			if len(s) != rigRounds || len(neither) != rigRounds {
				return fmt.Errorf("%d figures of %q", len(s), k.words)
			}
			fmt.Printf("| %s | %s | **%s** |\n", k.words, s.spread("%.0f"), s.over(neither).spread("%.2f"))
		}
		fmt.Println()
	}
	return nil
}

// inRig runs one measurement of test/vm, that often, and returns its figures by their names.
func (l *lab) inRig(test, flag string, rounds int) (map[string]sample, error) {
	out, err := l.do("go", "test", "./test/vm", "-count=1", "-v", "-timeout=2h", "-run", "^"+test+"$", "-args", flag, strconv.Itoa(rounds))
	if err != nil {
		return nil, err
	}
	figures := map[string]sample{}
	for _, m := range regexp.MustCompile(`figure (\S.*) (\S+)`).FindAllStringSubmatch(out, -1) {
		f, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return nil, err
		}
		figures[m[1]] = append(figures[m[1]], f)
	}
	return figures, nil
}

const linearRounds = 15

// linear measures in the rig what an adopted disk costs: a linear device over the plain one.
func linear(l *lab) error {
	fmt.Printf("## A linear device beside the plain one\n\nfio, direct, a virtio disk of 1 GiB in an emulated guest; %d rounds of 2 s in turns, the ratio is of each round. Emulation makes the processor's part far larger than it is.\n\n", linearRounds)
	figures, err := l.inRig("TestLinearCost", "-linear-rounds", linearRounds)
	if err != nil {
		return err
	}
	for _, kernel := range []string{"6.1", "6.12"} {
		fmt.Printf("| Linux %s | plain, IOPS, median (min to max) | linear | linear / plain |\n|---|---|---|---|\n", kernel)
		for _, load := range []struct{ name, words string }{
			{"write-4k-1", "random writes, 4 KiB, depth 1"},
			{"write-4k-16", "random writes, 4 KiB, depth 16"},
			{"read-4k-16", "random reads, 4 KiB, depth 16"},
			{"write-64k-1", "writes in order, 64 KiB, depth 1"},
			{"slow-write-4k-1", "a disk that takes 1 ms (null_blk): random writes, 4 KiB, depth 1"},
			{"slow-write-4k-4", "a disk that takes 1 ms: random writes, 4 KiB, depth 4"},
		} {
			plain, over := figures[kernel+" "+load.name+" plain"], figures[kernel+" "+load.name+" linear"]
			if len(plain) != linearRounds || len(over) != linearRounds {
				return fmt.Errorf("%d and %d figures of %s", len(plain), len(over), load.name)
			}
			fmt.Printf("| %s | %s | %s | **%s** |\n", load.words, plain.spread("%.0f"), over.spread("%.0f"), over.over(plain).spread("%.2f"))
		}
		fmt.Println()
	}
	return nil
}

const mergeRounds = 5

// merge measures in the rig how fast a store is applied: by us, and by the kernel's own merge.
func merge(l *lab) error {
	fmt.Printf("## snapstore apply beside the kernel's snapshot-merge\n\nA store of dm-snapshot with 64 MiB in its exceptions, applied to an origin of 256 MiB of zeros on the same virtio disk, in an emulated guest, until all is on the disk; %d rounds in turns, each result compared with what the snapshot was. Emulation makes the processor's part far larger than it is.\n\n", mergeRounds)
	figures, err := l.inRig("TestApplySpeed", "-apply-rounds", mergeRounds)
	if err != nil {
		return err
	}
	for _, kernel := range []string{"6.1", "6.12"} {
		fmt.Printf("| Linux %s | snapshot-merge, MiB/s, median (min to max) | tidemark | it / snapshot-merge | tidemark --direct | it / snapshot-merge |\n|---|---|---|---|---|---|\n", kernel)
		for _, c := range []struct{ name, words string }{
			{"4K-random", "chunks of 4 KiB, written at random"},
			{"64K-random", "chunks of 64 KiB, written at random"},
			{"4K-consecutive", "chunks of 4 KiB, written in order"},
		} {
			fmt.Print("| ", c.words)
			theirs := figures[kernel+" "+c.name+" kernel"]
			for _, who := range []string{"kernel", "tidemark", "direct"} {
				s := figures[kernel+" "+c.name+" "+who]
				if len(s) != mergeRounds || len(theirs) != mergeRounds {
					return fmt.Errorf("%d figures of %s, %s", len(s), c.name, who)
				}
				fmt.Print(" | ", s.spread("%.0f"))
				if who != "kernel" {
					fmt.Print(" | **", s.over(theirs).spread("%.2f"), "**")
				}
			}
			fmt.Println(" |")
		}
		fmt.Println()
	}
	return nil
}
