package view

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Hooks are shell commands around a view: to quiesce a program that uses the
// sources, and to let it go on. The zero value runs nothing.
type Hooks struct {
	// Pre runs before the freeze; if it fails or hangs, nothing is frozen.
	Pre string
	// Post runs after the thaw whenever Pre was started, also when the view or Pre
	// itself failed, or the context ended.
	Post string
	// Limit is the time that each may take; 0 is DefaultHookLimit.
	Limit time.Duration
}

// DefaultHookLimit is how long a hook may take when nothing else is said.
const DefaultHookLimit = 60 * time.Second

// hookOutput is how much of a hook's output is kept for the error, from its end.
const hookOutput = 4 << 10

// hookGrace is how long a killed hook's output is waited for: a process that left
// the group may hold the pipe open.
const hookGrace = time.Second

// RunPre runs the command before the freeze. The error wraps ErrHook.
func (h Hooks) RunPre(ctx context.Context, sources []string) error {
	return h.run(ctx, "pre-hook", h.Pre, sources)
}

// RunPost runs the command after the thaw, also when ctx has ended. The error
// wraps ErrHook.
func (h Hooks) RunPost(ctx context.Context, sources []string) error {
	return h.run(context.WithoutCancel(ctx), "post-hook", h.Post, sources)
}

func (h Hooks) run(ctx context.Context, name, command string, sources []string) error {
	if command == "" {
		return nil
	}
	limit := h.Limit
	if limit == 0 {
		limit = DefaultHookLimit
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out := &tail{limit: hookOutput}
	cmd := exec.CommandContext(limited, "/bin/sh", "-c", command)
	cmd.Env = append(os.Environ(), hookEnv(name, sources)...)
	cmd.Stdout, cmd.Stderr = out, out
	// A group of its own, so that what the hook started dies with it, and Ctrl-C on
	// the terminal reaches tidemark alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = hookGrace
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case limited.Err() != nil:
		err = fmt.Errorf("did not end within %v: %w", limit, limited.Err())
	}
	return fmt.Errorf("view: %s %q: %w: %w%s", name, command, ErrHook, err, out)
}

// hookEnv tells the hook what is held: one source in TIDEMARK_SOURCE, all of them,
// a line each, in TIDEMARK_SOURCES.
func hookEnv(name string, sources []string) []string {
	first := ""
	if len(sources) > 0 {
		first = sources[0]
	}
	return []string{
		"TIDEMARK_HOOK=" + name,
		"TIDEMARK_SOURCE=" + first,
		"TIDEMARK_SOURCES=" + strings.Join(sources, "\n"),
	}
}

// A tail keeps the end of what is written to it. Nothing is passed on: standard
// error may be a file on a filesystem that is about to be frozen.
type tail struct {
	mu    sync.Mutex
	limit int
	buf   []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - t.limit; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

// String returns what was kept, to be appended to a message.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := bytes.TrimSpace(t.buf)
	if len(text) == 0 {
		return ""
	}
	return ": " + string(text)
}
