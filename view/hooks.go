package view

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"tidemark/block"
	"tidemark/linux/shell"
)

// Hooks are shell commands around a view: to quiesce a program that uses the
// sources, and to let it go on. The zero value runs nothing.
//
// A hook has ended when its shell has. What that left running lives on, as what holds a
// lock until Post; a hook that takes too long is killed with all it started.
type Hooks struct {
	// Pre runs before the freeze; if it fails or hangs, nothing is frozen.
	Pre string
	// Post runs after the thaw whenever Pre was started, also when the view or Pre
	// itself failed, or the context ended.
	Post string
	// Limit is the time that each may take; 0 is DefaultHookLimit.
	Limit time.Duration
	// Said is told what a hook printed, "pre-hook" or "post-hook", when it succeeded; the
	// error has it else. It is called when all is thawed. It may be nil.
	Said func(hook, output string)
}

// DefaultHookLimit is how long a hook may take when nothing else is said.
const DefaultHookLimit = 60 * time.Second

// maxHookError is how much of a hook's output its error has, from its end, in bytes.
const maxHookError = 4 << 10

// RunPre runs the command before the freeze and returns what it printed. The error wraps
// ErrHook.
func (h Hooks) RunPre(ctx context.Context, sources []string) (string, error) {
	said, err := h.run(ctx, "pre-hook", h.Pre, sources)
	if err != nil {
		err = fmt.Errorf("nothing was frozen and nothing is copied: %w", err)
	}
	return said, err
}

// RunPost runs the command after the thaw, also when ctx has ended, and returns what it
// printed. The error wraps ErrHook.
func (h Hooks) RunPost(ctx context.Context, sources []string) (string, error) {
	return h.run(context.WithoutCancel(ctx), "post-hook", h.Post, sources)
}

func (h Hooks) run(ctx context.Context, name, line string, sources []string) (string, error) {
	if line == "" {
		return "", nil
	}
	limit := h.Limit
	if limit == 0 {
		limit = DefaultHookLimit
	}
	said, err := shell.Run(ctx, shell.Command{Line: line, Env: hookEnv(name, sources), Limit: limit})
	if err == nil {
		return said, nil
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		err = fmt.Errorf("it ended with %d", exit.ExitCode())
	}
	end := said
	if over := len(end) - maxHookError; over > 0 {
		end = strings.ToValidUTF8(end[over:], "")
	}
	if end != "" {
		end = ": " + end
	}
	return "", fmt.Errorf("view: %s %q: %w: %w%s", name, line, ErrHook, err, end)
}

// Around runs the commands before and after do, for a view that users of the sources do not have to
// wait for while it is read. post is the error of the post-hook alone, where do succeeded; both wrap
// ErrHook, and the post-hook runs whenever the pre-hook was started.
func (h Hooks) Around(ctx context.Context, sources []*block.Device, do func() error) (post, err error) {
	paths := pathsOf(sources)
	before, err := h.RunPre(ctx, paths)
	if err == nil {
		err = do()
	}
	after, post := h.RunPost(ctx, paths)
	h.tell("pre-hook", before)
	h.tell("post-hook", after)
	if err != nil {
		return nil, errors.Join(err, post)
	}
	return post, nil
}

// tell passes on what a hook said.
func (h Hooks) tell(name, said string) {
	if h.Said != nil && said != "" {
		h.Said(name, said)
	}
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
