package bpf_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/extent"
	"tidemark/track"
	"tidemark/track/bpf"
)

// childEnv makes the test binary a child process with one of the jobs below.
const childEnv = "TRACK_TEST_CHILD"

func TestMain(m *testing.M) {
	if job := os.Getenv(childEnv); job != "" {
		if err := child(strings.Fields(job)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child does one job: "die <device> <run> <bpffs> <steps>" or
// "cut <device> <run> <bpffs> <times>".
func child(job []string) error {
	l, err := opened(context.Background(), job[1], bpf.Options{RunDir: job[2], BPFFS: job[3]})
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(job[4])
	if err != nil {
		return err
	}
	if job[0] == "die" {
		if _, err := l.FlipHalf(context.Background(), n); err != nil {
			return err
		}
		return unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	for range n {
		c, err := l.Cut(context.Background())
		if err != nil {
			return err
		}
		fmt.Println(c.Mark)
		if err := l.Persist(context.Background()); err != nil {
			return err
		}
	}
	return l.Close()
}

func startChild(t *testing.T, what, dev string, opts bpf.Options, n int) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s %s %d", childEnv, what, dev, opts.RunDir, opts.BPFFS, n))
	cmd.Stderr = os.Stderr
	return cmd
}

func TestProcessKilledBetweenTwoStepsOfACutLosesNothing(t *testing.T) {
	opts := places(t)
	dev := loopDisk(t, 16<<20)
	watcher := open(t, dev, opts)
	first := cut(t, watcher)
	var written []extent.Extent
	touch := func(n int64) {
		e := extent.Extent{Off: n * 8192, Len: 4096}
		write(t, dev, e.Off, 4096, byte(n+1))
		written = append(written, e)
	}
	n := 0
	for more := true; more; n++ {
		touch(int64(3 * n))
		err := startChild(t, "die", dev, opts, n).Run()
		if exit := (*exec.ExitError)(nil); !asExit(err, &exit) || !strings.Contains(exit.String(), "killed") {
			t.Fatalf("the child was to be killed: %v", err)
		}
		touch(int64(3*n + 1))
		wantChanges(t, watcher, first, "", written...)
		last := cut(t, watcher)
		wantChanges(t, watcher, first, last, written...)
		touch(int64(3*n + 2))
		wantChanges(t, watcher, last, "", written[len(written)-1])
		if err := watcher.Persist(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantChanges(t, watcher, first, "", written...)
		var err2 error
		if more, err2 = watcher.FlipHalf(t.Context(), n+1); err2 != nil {
			t.Fatal(err2)
		}
	}
	if n < 7 {
		t.Errorf("only %d steps were tried", n)
	}
}

func asExit(err error, target **exec.ExitError) bool {
	exit, ok := err.(*exec.ExitError)
	*target = exit
	return ok
}

func TestTwoProcessesCutOneDisk(t *testing.T) {
	opts := places(t)
	dev := loopDisk(t, 64<<20)
	l := open(t, dev, opts)
	first := cut(t, l)
	cmd := startChild(t, "cut", dev, opts, 40)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen := map[track.Mark]bool{first: true}
	mark := func(m track.Mark) {
		if seen[m] {
			t.Errorf("mark %s was given out twice", m)
		}
		seen[m] = true
	}
	var written []extent.Extent
	last := first
	for i := range 40 {
		e := extent.Extent{Off: int64(i) << 20, Len: 4096}
		write(t, dev, e.Off, 4096, 1)
		written = append(written, e)
		now := cut(t, l)
		mark(now)
		wantChanges(t, l, last, now, e)
		last = now
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		mark(track.Mark(lines.Text()))
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 81 {
		t.Errorf("%d marks, want 81", len(seen))
	}
	wantChanges(t, l, first, "", written...)
}
