package fsfreeze_test

import (
	"bufio"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/mounts/mountstest"
)

// A freezer is another process that freezes.
type freezer struct {
	cmd      *exec.Cmd
	stdin    io.WriteCloser
	lines    *bufio.Scanner
	watchdog int
}

func startFreezer(t *testing.T, limit, mode string, dirs ...string) *freezer {
	t.Helper()
	f := &freezer{cmd: exec.Command("/proc/self/exe", append([]string{childArg, limit, mode}, dirs...)...)}
	f.cmd.Stderr = os.Stderr
	stdin, err := f.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.stdin, f.lines = stdin, bufio.NewScanner(stdout)
	t.Cleanup(f.kill)
	return f
}

// reach reads what the process says until it names the stage; false when it ended.
func (f *freezer) reach(stage string) bool {
	for f.lines.Scan() {
		word, rest, _ := strings.Cut(f.lines.Text(), " ")
		if word == "armed" {
			f.watchdog, _ = strconv.Atoi(rest)
		}
		if word == stage {
			return true
		}
	}
	return false
}

// kill ends the process without warning, reads its output to the end, and reaps it.
func (f *freezer) kill() {
	f.cmd.Process.Kill()
	for f.lines.Scan() {
	}
	f.cmd.Wait()
}

// A writer writes and syncs all the time, and counts.
func startWriter(t *testing.T, dir string) *atomic.Int64 {
	t.Helper()
	f, err := os.Create(dir + "/written")
	if err != nil {
		t.Fatal(err)
	}
	var count atomic.Int64
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer f.Close()
		block := make([]byte, 64<<10)
		for !stop.Load() {
			if _, err := f.WriteAt(block, count.Load()%64<<16); err != nil {
				t.Errorf("writer: %v", err)
				return
			}
			if err := f.Sync(); err != nil {
				t.Errorf("writer: %v", err)
				return
			}
			count.Add(1)
		}
	}()
	t.Cleanup(func() {
		stop.Store(true)
		mountstest.Thaw(dir)
		<-done
	})
	return &count
}

const kills = 30

func TestFreezerKilledAnywhereLeavesNothingFrozen(t *testing.T) {
	a, b := disk(t, "ext4"), disk(t, "xfs")
	written := []*atomic.Int64{startWriter(t, a), startWriter(t, b)}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	stages := []string{"arming", "armed", "synced", "frozen", "thawing"}
	for i := range kills {
		f := startFreezer(t, "0s", "root", a, b)
		stage := stages[i%len(stages)]
		if stage == "thawing" {
			f.stdin.Close()
		}
		if !f.reach(stage) {
			t.Fatalf("run %d ended before %s", i, stage)
		}
		// Anywhere in the stage, not only where it begins.
		time.Sleep(time.Duration(random.Int64N(int64(5 * time.Millisecond))))
		f.kill()
		for n, count := range written {
			before := count.Load()
			mountstest.Eventually(t, "writer "+strconv.Itoa(n)+" goes on", func() bool { return count.Load() > before+1 })
		}
		if w := f.watchdog; w != 0 {
			mountstest.Eventually(t, "the watchdog leaves", func() bool { return gone(w) || zombie(w) })
		}
	}
}

// zombie says whether a process has ended and only waits to be reaped, which in a
// container without an init may be for ever.
func zombie(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "Z")
}

func TestFreezerThatEndsByItselfThaws(t *testing.T) {
	dir := disk(t, "ext4")
	f := startFreezer(t, "1m", "root", dir)
	if !f.reach("frozen") {
		t.Fatal("it did not freeze")
	}
	wantFrozen(t, dir)
	f.stdin.Close()
	if !f.reach("thawed") {
		t.Error("it did not thaw")
	}
	wantThawed(t, dir)
}

func TestStoppedFreezerIsThawedInTime(t *testing.T) {
	dir := disk(t, "ext4")
	f := startFreezer(t, "300ms", "root", dir)
	if !f.reach("frozen") {
		t.Fatal("it did not freeze")
	}
	if err := unix.Kill(f.cmd.Process.Pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	wantThawed(t, dir)
}

func TestFreezeNeedsPrivilegesAndSaysSo(t *testing.T) {
	dir := disk(t, "ext4")
	f := startFreezer(t, "1m", "nobody", dir)
	if !f.reach("error:") {
		t.Fatal("it said nothing")
	}
	if line := f.lines.Text(); !strings.Contains(line, dir) || !strings.Contains(line, unix.EPERM.Error()) {
		t.Errorf("it said %q, want %q for %s", line, unix.EPERM, dir)
	}
	wantThawed(t, dir)
}
