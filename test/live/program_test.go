package live_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The exit codes of the program, from its man page.
const (
	exitOK         = 0
	exitError      = 1
	exitNoConverge = 3
	exitMarkLost   = 4
	exitDifferent  = 5
	exitRefused    = 6
	exitBusy       = 7
	exitDamaged    = 8
	exitKilled     = -1
	exitByHUP      = 129
	exitByINT      = 130
	exitByTERM     = 143
	patience       = 30 * time.Second // for what must come true
	programTimeout = 2 * time.Minute
)

// build makes the program as users get it, in dir.
func build(dir string) (string, error) {
	bin := filepath.Join(dir, "tidemark")
	cmd := exec.Command("go", "build", "-o", bin, "tidemark/cmd/tidemark")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return bin, nil
}

// program is the real binary with a state that nothing else on the machine
// shares.
type program struct {
	dir      string   // of the test, in memory
	wrapper  []string // a command line to run it by
	runDir   string
	stateDir string
	bpffs    string
}

func newProgram(t *testing.T, dir string) *program {
	t.Helper()
	o := tracking(t, dir)
	return &program{dir: dir, runDir: o.RunDir, stateDir: filepath.Join(dir, "state"), bpffs: o.BPFFS}
}

// through returns the same program run by way of another one.
func (p *program) through(wrapper ...string) *program {
	q := *p
	q.wrapper = wrapper
	return &q
}

// running is a run of the program that has not ended yet.
type running struct {
	*exec.Cmd
	out, err bytes.Buffer
	cancel   context.CancelFunc
	ended    chan struct{}
}

// start begins a run, which is killed at the latest when the test ends.
func (p *program) start(t *testing.T, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), programTimeout)
	line := append(append(slices.Clone(p.wrapper), tidemark), args...)
	r := &running{Cmd: exec.CommandContext(ctx, line[0], line[1:]...), cancel: cancel, ended: make(chan struct{})}
	r.Env = append(os.Environ(), "TIDEMARK_RUN_DIR="+p.runDir, "TIDEMARK_STATE_DIR="+p.stateDir, "TIDEMARK_BPFFS="+p.bpffs)
	r.Dir, r.Stdout, r.Stderr, r.WaitDelay = p.dir, &r.out, &r.err, 5*time.Second
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(r.ended)
		r.Wait() // the result is in ProcessState
	}()
	t.Cleanup(func() { cancel(); <-r.ended })
	return r
}

// finished is a run that has ended.
type finished struct {
	code     int
	out, err string
}

// end waits until the run is over.
func (r *running) end(t *testing.T) finished {
	t.Helper()
	<-r.ended
	r.cancel()
	f := finished{r.ProcessState.ExitCode(), r.out.String(), r.err.String()}
	if strings.Contains(f.err, "panic:") || strings.Contains(f.err, "goroutine ") {
		t.Fatalf("%v crashed:\n%s", r.Args[1:], f.err)
	}
	return f
}

// kill ends the run without warning and waits until it is gone.
func (r *running) kill(t *testing.T, signal syscall.Signal) finished {
	t.Helper()
	if err := r.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	return r.end(t)
}

func (p *program) run(t *testing.T, args ...string) finished {
	t.Helper()
	return p.start(t, args...).end(t)
}

// exits runs the program and wants it to end with a code and to say all the
// words.
func (p *program) exits(t *testing.T, code int, words []string, args ...string) finished {
	t.Helper()
	f := p.run(t, args...)
	f.want(t, code, words...)
	return f
}

func (f finished) want(t *testing.T, code int, words ...string) {
	t.Helper()
	if f.code != code {
		t.Fatalf("exit code %d, want %d\n%s%s", f.code, code, f.out, f.err)
	}
	for _, w := range words {
		if !strings.Contains(f.out+f.err, w) {
			t.Fatalf("%q is missing in what was said:\n%s%s", w, f.out, f.err)
		}
	}
}

// told is what a run of mirror reports of one pair.
type told struct {
	Source   string `json:"source"`
	Target   string `json:"target"`
	Tracker  string `json:"tracker"`
	View     string `json:"view"`
	Mode     string `json:"mode"`
	MarkLost string `json:"mark_lost"`
	Mark     string `json:"mark"`
	Read     int64  `json:"bytes_read"`
	Written  int64  `json:"bytes_written"`
	Outcome  string `json:"outcome"`
}

// reports reads what --json printed.
func (f finished) reports(t *testing.T) []told {
	t.Helper()
	var all []told
	for dec := json.NewDecoder(strings.NewReader(f.out)); dec.More(); {
		var one told
		if err := dec.Decode(&one); err != nil {
			t.Fatalf("%v in %s", err, f.out)
		}
		all = append(all, one)
	}
	return all
}

// mirror makes a run that must succeed and returns the report of the first pair.
func (p *program) mirror(t *testing.T, args ...string) told {
	t.Helper()
	f := p.run(t, append([]string{"mirror", "--json"}, args...)...)
	f.want(t, exitOK)
	rep := f.reports(t)[0]
	t.Logf("%s (%s, %s): read %d KiB, wrote %d KiB %s", rep.Mode, rep.Tracker, rep.View, rep.Read>>10, rep.Written>>10, rep.MarkLost)
	return rep
}

// until polls for what must come true.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v: not yet: %s", patience, what)
		}
	}
}

// exists reports whether there is a file.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// allocated returns how many bytes a file takes, 0 when there is none.
func allocated(path string) int64 {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}
