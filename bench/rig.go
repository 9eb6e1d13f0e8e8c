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
	out, err := l.do("go", "test", "./test/vm", "-count=1", "-v", "-run", "^TestWriteOverhead$", "-args", "-overhead-rounds", strconv.Itoa(rigRounds))
	if err != nil {
		return err
	}
	figures := map[string]sample{}
	for _, m := range regexp.MustCompile(`figure (\S+ \S+) (\S+)`).FindAllStringSubmatch(out, -1) {
		f, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return err
		}
		figures[m[1]] = append(figures[m[1]], f)
	}
	for _, kernel := range []string{"6.1", "6.12"} {
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
				return fmt.Errorf("%d figures of %q in %q", len(s), k.words, out)
			}
			fmt.Printf("| %s | %s | **%s** |\n", k.words, s.spread("%.0f"), s.over(neither).spread("%.2f"))
		}
		fmt.Println()
	}
	return nil
}
