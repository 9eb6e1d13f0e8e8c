package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	overheadRounds = 150
	overheadWindow = 300 * time.Millisecond
)

// overhead measures the cost of tracking for a writer: the writes that one fio gets done
// with tracking on and off, in turns, and the kernel's own count of the time spent in
// the programs. Fio is not started anew for each turn, because where the scheduler
// happens to put it and the loop device's worker matters more than tracking.
func overhead(l *lab) error {
	dev, err := l.loop(l.path("disk.img"), 2<<30)
	if err != nil {
		return err
	}
	if err := fillDevice(dev, 2<<30); err != nil {
		return err
	}
	if err := l.load("--filename="+dev, "--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=16"); err != nil {
		return err
	}
	var on, off sample
	tracked := false
	for round := range overheadRounds {
		for turn := range 2 {
			// Off, on, on, off: a machine that grows slower or faster favours neither.
			if want := (round+turn)%2 == 1; want != tracked {
				action := map[bool]string{true: "start", false: "stop"}[want]
				if _, err := l.do(l.tidemark, "track", action, dev); err != nil {
					return err
				}
				tracked = want
			}
			iops, err := writesPerSecond(dev)
			if err != nil {
				return err
			}
			if tracked {
				on = append(on, iops)
			} else {
				off = append(off, iops)
			}
		}
	}
	perBio, detail, err := l.costOfABio(dev)
	if err != nil {
		return err
	}
	fmt.Printf("## Cost of tracking\n\n")
	fmt.Printf("fio, 4 KiB random writes, direct, queue depth 16, loop device over tmpfs, %d rounds of %v each, on and off in turns.\n\n", overheadRounds, overheadWindow)
	fmt.Printf("| | median (min to max) |\n|---|---|\n")
	fmt.Printf("| IOPS, tracking off | %s |\n", off.spread("%.0f"))
	fmt.Printf("| IOPS, tracking on | %s |\n", on.spread("%.0f"))
	fmt.Printf("| on / off, of each round | **%s** |\n", on.over(off).spread("%.3f"))
	fmt.Printf("| ns per bio, kernel's BPF statistics, all programs | **%.0f** (%s) |\n\n", perBio, detail)
	return nil
}

// writesPerSecond counts what the kernel completes on the device
// (Documentation/block/stat.rst), after a moment in which the machine forgets the
// program that turned tracking on or off.
func writesPerSecond(dev string) (float64, error) {
	count := func() (float64, time.Time, error) {
		stat, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(dev), "stat"))
		if err != nil {
			return 0, time.Time{}, err
		}
		fields := strings.Fields(string(stat))
		if len(fields) < 5 {
			return 0, time.Time{}, fmt.Errorf("%s: stat is %q", dev, stat)
		}
		n, err := strconv.ParseFloat(fields[4], 64)
		return n, time.Now(), err
	}
	time.Sleep(overheadWindow / 3)
	before, began, err := count()
	if err != nil {
		return 0, err
	}
	time.Sleep(overheadWindow)
	after, ended, err := count()
	return (after - before) / ended.Sub(began).Seconds(), err
}

// costOfABio adds up what all our programs spent while fio wrote, and divides it
// by the number of requests; fio's are one bio each.
func (l *lab) costOfABio(dev string) (float64, string, error) {
	others, err := programTimes()
	if err != nil {
		return 0, "", err
	}
	if _, err := l.do(l.tidemark, "track", "start", dev); err != nil {
		return 0, "", err
	}
	defer l.do(l.tidemark, "track", "stop", dev)
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return 0, "", err
	}
	defer stats.Close()
	before, err := programTimes()
	if err != nil {
		return 0, "", err
	}
	if _, err := writesPerSecond(dev); err != nil {
		return 0, "", err
	}
	after, err := programTimes()
	if err != nil {
		return 0, "", err
	}
	var total float64
	var bios uint64
	var words []string
	for id, a := range after {
		b := before[id]
		if _, other := others[id]; other {
			continue
		}
		if runs := a.runs - b.runs; runs > 0 {
			total += float64(a.nanos - b.nanos)
			words = append(words, fmt.Sprintf("%s %.0f", a.name, float64(a.nanos-b.nanos)/float64(runs)))
			if strings.Contains(a.name, "issue") {
				bios = runs
			}
		}
	}
	if bios == 0 {
		return 0, "", fmt.Errorf("no program that counts requests has run")
	}
	return total / float64(bios), strings.Join(words, ", "), nil
}

type programTime struct {
	name  string
	runs  uint64
	nanos uint64
}

// programTimes returns the run times of all tracing programs of the machine;
// those that did not run meanwhile drop out of the difference.
func programTimes() (map[ebpf.ProgramID]programTime, error) {
	times := map[ebpf.ProgramID]programTime{}
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if err != nil {
			return times, nil // there are no more
		}
		id = next
		prog, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone meanwhile
		}
		info, err := prog.Info()
		if err != nil {
			return nil, err
		}
		stats, err := prog.Stats()
		if err != nil {
			return nil, err
		}
		prog.Close()
		times[id] = programTime{info.Name, stats.RunCount, uint64(stats.Runtime.Nanoseconds())}
	}
}
