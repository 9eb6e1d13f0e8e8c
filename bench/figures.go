package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// sample is a list of figures of one kind.
type sample []float64

func (s sample) at(part float64) float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(int(part*float64(len(sorted))), len(sorted)-1)]
}

func (s sample) median() float64 {
	sorted := slices.Sorted(slices.Values(s))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}

// spread prints the median with minimum and maximum.
func (s sample) spread(format string) string {
	return fmt.Sprintf(format+" ("+format+" to "+format+")", s.median(), slices.Min(s), slices.Max(s))
}

// over divides pair by pair.
func (s sample) over(t sample) sample {
	var out sample
	for i := range s {
		out = append(out, s[i]/t[i])
	}
	return out
}

// used is what a program cost.
type used struct {
	wall   float64 // seconds
	user   float64 // seconds of processor time outside of the kernel
	system float64 // and in it
	memory int64   // peak, bytes
	out    string
}

// timed runs a program and measures it from outside. Its memory is told by time(1), which is
// small: a program that is started here counts at first with the memory of this one.
func timed(cmd *exec.Cmd) (used, error) {
	var out, stderr strings.Builder
	told, err := os.CreateTemp("", "bench")
	if err != nil {
		return used{}, err
	}
	defer os.Remove(told.Name())
	defer told.Close()
	cmd.Args = append([]string{"time", "-f", "%M", "-o", told.Name(), cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/usr/bin/time"
	cmd.Stdout, cmd.Stderr = &out, &stderr
	began := time.Now()
	err = cmd.Run()
	u := used{wall: time.Since(began).Seconds(), out: strings.TrimSpace(out.String())}
	if err != nil {
		return u, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	u.user, u.system = cmd.ProcessState.UserTime().Seconds(), cmd.ProcessState.SystemTime().Seconds()
	if _, err := fmt.Fscan(told, &u.memory); err != nil {
		return u, fmt.Errorf("time: %w", err)
	}
	u.memory <<= 10
	return u, nil
}

// report is what bench needs of the JSON of "tidemark mirror".
type report struct {
	Mode     string  `json:"mode"`
	Changed  int64   `json:"bytes_changed"`
	Read     int64   `json:"bytes_read"`
	Written  int64   `json:"bytes_written"`
	Journal  int64   `json:"bytes_journaled"`
	FrozenMS float64 `json:"frozen_ms"`
	TookMS   float64 `json:"duration_ms"`
}

func (l *lab) mirror(args ...string) (used, report, error) {
	var rep report
	u, err := timed(l.command(l.tidemark, append([]string{"mirror", "--json"}, args...)...))
	if err == nil {
		err = json.Unmarshal([]byte(u.out), &rep)
	}
	return u, rep, err
}

// fillDevice writes random bytes to the first size bytes of dev.
func fillDevice(dev string, size int64) error {
	f, err := os.OpenFile(dev, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	rng := rand.NewChaCha8([32]byte{1})
	for at := int64(0); at < size; at += int64(len(buf)) {
		rng.Read(buf)
		if _, err := f.WriteAt(buf, at); err != nil {
			return err
		}
	}
	return f.Sync()
}

// changeBlocks writes random bytes to n different random blocks of 4 KiB.
func changeBlocks(dev string, size int64, n int, rng *rand.Rand) error {
	f, err := os.OpenFile(dev, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 4096)
	source := rand.NewChaCha8([32]byte{byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32())})
	for _, block := range rng.Perm(int(size / 4096))[:n] {
		source.Read(buf)
		if _, err := f.WriteAt(buf, int64(block)*4096); err != nil {
			return err
		}
	}
	return f.Sync()
}
