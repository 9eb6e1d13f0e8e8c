// Package shell runs the command lines that users give: hooks, and what is called when a
// job has ended.
//
// For most uses, call [Run]. A command has ended when its shell has, whatever it left
// running: that keeps its standard output and lives on. A command that takes too long, or
// whose context ends, is killed with all processes of its group.
//
// Nothing that a command says is passed on while it runs. Functions may be called by
// several goroutines at once.
package shell

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrTimeUp says that a command did not end in time and was killed.
var ErrTimeUp = errors.New("did not end in time")

// MaxOutput is how much of what a command says is kept, from its end, in bytes.
const MaxOutput = 64 << 10

// Command is one line for /bin/sh.
type Command struct {
	Line  string
	Env   []string // NAME=value, added to the environment of this process
	Limit time.Duration
}

// Run runs c, which may take c.Limit, and returns the end of what it said on standard
// output and standard error. The error is an *exec.ExitError, wraps ErrTimeUp, or is the
// cause of the end of ctx.
func Run(ctx context.Context, c Command) (said string, err error) {
	limited, cancel := context.WithTimeout(ctx, c.Limit)
	defer cancel()
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(limited, "/bin/sh", "-c", c.Line)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stdout, cmd.Stderr = w, w // files: the end of the shell is not that of all who hold the pipe
	// A group of its own, so that what the command started dies with it, and Ctrl-C on
	// the terminal reaches this program alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	out := listen(r)
	err = cmd.Start()
	_ = w.Close() // the shell has its own
	if err == nil {
		err = cmd.Wait()
	}
	said = out.end()
	switch {
	case err == nil:
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case limited.Err() != nil:
		err = fmt.Errorf("%w: it was killed after %v", ErrTimeUp, c.Limit)
	}
	return said, err
}

// output is the reading end of a command's pipe, and the tail of what came.
type output struct {
	r       *os.File
	tail    []byte
	stopped chan error
}

func listen(r *os.File) *output {
	o := &output{r: r, stopped: make(chan error, 1)}
	go func() {
		_, err := io.Copy(o, r)
		o.stopped <- err
	}()
	return o
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.tail = append(o.tail, p...)
	if over := len(o.tail) - MaxOutput; over > 0 {
		o.tail = append(o.tail[:0], o.tail[over:]...)
	}
	return len(p), nil
}

// end returns what was said until now. What holds the pipe still goes on as if it were
// read, until it ends: a closed pipe would kill it.
func (o *output) end() string {
	// It cannot fail: pipes have deadlines.
	_ = o.r.SetReadDeadline(time.Unix(1, 0))
	if err := <-o.stopped; err == nil {
		_ = o.r.Close() // all who could say something have ended
		return o.String()
	}
	_ = o.r.SetReadDeadline(time.Time{})
	if o.rest() {
		_ = o.r.Close()
		return o.String()
	}
	go func() {
		_, _ = io.Copy(io.Discard, o.r)
		_ = o.r.Close()
	}()
	return o.String()
}

// rest takes what is in the pipe without waiting, and reports whether that was the end.
// It is no more than a pipe holds: somebody may write for ever.
func (o *output) rest() (ended bool) {
	conn, err := o.r.SyscallConn()
	if err != nil {
		return true
	}
	buf := make([]byte, MaxOutput)
	_ = conn.Read(func(fd uintptr) bool {
		for range 2 {
			n, err := unix.Read(int(fd), buf)
			if n <= 0 {
				ended = err == nil
				return true
			}
			_, _ = o.Write(buf[:n])
		}
		return true
	})
	return ended
}

func (o *output) String() string {
	return strings.ToValidUTF8(string(bytes.TrimSpace(o.tail)), "�")
}
