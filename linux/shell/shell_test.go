package shell_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/shell"
)

// patience is longer than anything here takes.
const patience = time.Minute

func run(t *testing.T, line string) (string, error) {
	t.Helper()
	return shell.Run(t.Context(), shell.Command{Line: line, Env: []string{"WORD=hello"}, Limit: patience})
}

// alive ends the process whose id is in a file, and reports whether it ran.
func alive(t *testing.T, path string) bool {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ") && unix.Kill(pid, unix.SIGKILL) == nil
}

func TestACommandEndsWithItsShell(t *testing.T) {
	pid := t.TempDir() + "/pid"
	began := time.Now()
	said, err := run(t, "echo $WORD; sleep 1000 & echo $! >"+pid+"; echo last >&2")
	if err != nil || said != "hello\nlast" {
		t.Errorf("%q, %v", said, err)
	}
	if took := time.Since(began); took > patience/2 {
		t.Errorf("took %v", took)
	}
	if !alive(t, pid) {
		t.Error("what it left has ended")
	}
}

// A closed or full pipe would stop what holds a lock until the post-hook.
func TestWhatIsLeftMaySpeak(t *testing.T) {
	done := t.TempDir() + "/done"
	_, err := run(t, "exec 3>&1; (sleep 0.1; head -c 1000000 /dev/zero; echo x >"+done+") &")
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(done); err == nil {
			return
		}
	}
	t.Error("it could not write")
}

func TestAllThatWasSaidBeforeTheEndIsKept(t *testing.T) {
	for range 50 {
		said, err := run(t, "yes | head -c 200000; echo the end; sleep 0.2 &")
		if err != nil || !strings.HasSuffix(said, "y\nthe end") || len(said) > shell.MaxOutput {
			t.Fatalf("%d bytes, %.20q, %v", len(said), said, err)
		}
	}
}

func TestACommandThatHangsIsKilledWithAllItStarted(t *testing.T) {
	pid := t.TempDir() + "/pid"
	said, err := shell.Run(t.Context(), shell.Command{
		Line: "echo begun; sleep 1000 & echo $! >" + pid + "; wait", Limit: 300 * time.Millisecond,
	})
	if !errors.Is(err, shell.ErrTimeUp) || said != "begun" || strings.Contains(err.Error(), "context") {
		t.Errorf("%q, %v", said, err)
	}
	for end := time.Now().Add(patience); alive(t, pid); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("what it started lives on")
		}
	}
}

func TestTheEndOfTheContextIsTold(t *testing.T) {
	cause := errors.New("stopped by hand")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(100*time.Millisecond, func() { cancel(cause) })
	if _, err := shell.Run(ctx, shell.Command{Line: "sleep 1000", Limit: patience}); !errors.Is(err, cause) {
		t.Error(err)
	}
}

func TestTheExitStatusIsTold(t *testing.T) {
	said, err := run(t, "echo why; exit 3")
	var exit *exec.ExitError
	if said != "why" || !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("%q, %v", said, err)
	}
}
