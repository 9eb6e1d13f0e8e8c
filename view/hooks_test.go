package view_test

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/mounts/mountstest"
	"tidemark/linux/shell"
	"tidemark/view"
)

// logHook appends a line to a file that is not on the sources.
func logHook(path, words string) string { return "echo " + words + " >>" + path }

func logged(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Fields(string(b))
}

func wantLogged(t *testing.T, path string, want ...string) {
	t.Helper()
	if got := logged(t, path); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("hooks did %q, want %q", got, want)
	}
}

func TestHooksRunAroundTheFreeze(t *testing.T) {
	dev, dir := mounted(t, "ext4")
	log := t.TempDir() + "/log"
	o := sources(t, dev)
	// Both write to the source: they would hang if it were frozen.
	o.Hooks.Pre = "touch " + dir + "/pre && " + logHook(log, "$TIDEMARK_HOOK:$TIDEMARK_SOURCE")
	o.Hooks.Post = "touch " + dir + "/post && " + logHook(log, "$TIDEMARK_HOOK:$TIDEMARK_SOURCES")
	o.Hooks.Limit = thawedBy
	h := hold(t, view.Freeze(o))
	wantLogged(t, log, "pre-hook:"+dev)
	wantFrozen(t, dir)
	if err := h.Release(); err != nil {
		t.Fatal(err)
	}
	wantLogged(t, log, "pre-hook:"+dev, "post-hook:"+dev)
	if err := h.Report().PostHook; err != nil {
		t.Error(err)
	}
}

func TestFailingPreHookFreezesNothing(t *testing.T) {
	dev, dir := mounted(t, "ext4")
	log := t.TempDir() + "/log"
	o := sources(t, dev)
	o.Hooks = view.Hooks{Pre: "echo some reason; echo more >&2; exit 3", Post: logHook(log, "post")}
	_, err := view.Freeze(o).Take(t.Context(), anyInstant)
	if !errors.Is(err, view.ErrHook) || !strings.Contains(err.Error(), "some reason\nmore") || !strings.Contains(err.Error(), "it ended with 3") || !strings.Contains(err.Error(), "nothing is copied") {
		t.Errorf("hold: %v", err)
	}
	wantThawed(t, dir)
	wantLogged(t, log, "post")
}

func TestFailingPostHookIsReportedWithoutBreakingTheView(t *testing.T) {
	dev := mountstest.Disk(t, small)
	o := sources(t, dev)
	o.Hooks.Post = "exit 1"
	h := hold(t, view.Offline(o))
	if err := h.Release(); err != nil {
		t.Errorf("release: %v", err)
	}
	if err := h.Report().PostHook; !errors.Is(err, view.ErrHook) {
		t.Errorf("post-hook: %v", err)
	}
}

// hangingHook starts a process of its own, says its id, and hangs.
func hangingHook(log string) string {
	return "sleep 1000 & echo $! >>" + log + "; wait"
}

func wantHookGone(t *testing.T, log string) {
	t.Helper()
	pids := logged(t, log)
	if len(pids) == 0 {
		t.Fatal("the hook did not start")
	}
	pid, err := strconv.Atoi(pids[0])
	if err != nil {
		t.Fatal(err)
	}
	mountstest.Eventually(t, "the hook's process ends", func() bool {
		stat, err := os.ReadFile("/proc/" + pids[0] + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ") || errors.Is(unix.Kill(pid, 0), unix.ESRCH)
	})
}

func TestHangingPreHookIsKilledWithAllItStarted(t *testing.T) {
	dev, dir := mounted(t, "ext4")
	log, end := t.TempDir()+"/log", t.TempDir()+"/end"
	o := sources(t, dev)
	o.Hooks = view.Hooks{Pre: hangingHook(log), Post: logHook(end, "post"), Limit: 500 * time.Millisecond}
	_, err := view.Freeze(o).Take(t.Context(), anyInstant)
	if !errors.Is(err, view.ErrHook) || !errors.Is(err, shell.ErrTimeUp) || !strings.Contains(err.Error(), "killed after 500ms") {
		t.Errorf("hold: %v", err)
	}
	wantHookGone(t, log)
	wantThawed(t, dir)
	wantLogged(t, end, "post")
}

func TestCancelledHookIsKilledAndPostHookStillRuns(t *testing.T) {
	dev, dir := mounted(t, "ext4")
	log, end := t.TempDir()+"/log", t.TempDir()+"/end"
	o := sources(t, dev)
	o.Hooks = view.Hooks{Pre: hangingHook(log), Post: logHook(end, "post")}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	result := make(chan error, 1)
	go func() {
		_, err := view.Freeze(o).Take(ctx, anyInstant)
		result <- err
	}()
	mountstest.Eventually(t, "the hook starts", func() bool { return len(logged(t, log)) > 0 })
	cancel()
	select {
	case err := <-result:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("hold: %v", err)
		}
	case <-time.After(thawedBy):
		t.Fatal("hold did not return")
	}
	wantHookGone(t, log)
	wantThawed(t, dir)
	wantLogged(t, end, "post")
}

func TestPostHookRunsAlthoughTheContextEnded(t *testing.T) {
	dev, dir := mounted(t, "ext4")
	end := t.TempDir() + "/end"
	o := sources(t, dev)
	o.Hooks.Post = logHook(end, "post")
	ctx, cancel := context.WithCancel(t.Context())
	h, err := view.Freeze(o).Take(ctx, anyInstant)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := h.Close(); err != nil {
		t.Error(err)
	}
	wantThawed(t, dir)
	wantLogged(t, end, "post")
}

func TestLongHookOutputIsCut(t *testing.T) {
	h := view.Hooks{Pre: "yes | head -c 1000000; echo the end; exit 1"}
	_, err := h.RunPre(t.Context(), nil)
	if !errors.Is(err, view.ErrHook) || len(err.Error()) > 8<<10 || !strings.Contains(err.Error(), "the end") {
		t.Errorf("%d bytes of error, %.80v", len(err.Error()), err)
	}
}

// Standard error may lie on what is frozen, and a reader may be slow.
func TestWhatHooksSayIsToldWhenAllIsThawed(t *testing.T) {
	dev, dir := mounted(t, "ext4")
	o := sources(t, dev)
	var told []string
	o.Hooks = view.Hooks{Pre: "echo first", Post: "echo second >&2", Said: func(hook, said string) {
		wantThawed(t, dir)
		told = append(told, hook+" "+said)
	}}
	h := hold(t, view.Freeze(o))
	if len(told) != 0 {
		t.Errorf("told while frozen: %q", told)
	}
	if err := h.Release(); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(told, ", "); got != "pre-hook first, post-hook second" {
		t.Errorf("told %q", got)
	}
}

// A database is locked by a client that must not end before the post-hook.
func TestWhatAPreHookLeavesRunningHoldsUntilThePostHook(t *testing.T) {
	dev, dir := mounted(t, "ext4")
	log := t.TempDir() + "/log"
	o := sources(t, dev)
	o.Hooks = view.Hooks{Pre: "sleep 1000 & echo $! >" + log, Post: "kill $(cat " + log + ") && echo unlocked >>" + log, Limit: thawedBy}
	h := hold(t, view.Freeze(o))
	wantFrozen(t, dir)
	if err := h.Release(); err != nil {
		t.Fatal(err)
	}
	if err := h.Report().PostHook; err != nil {
		t.Error(err)
	}
	wantHookGone(t, log)
	if got := logged(t, log); len(got) != 2 {
		t.Errorf("post-hook: %q", got)
	}
}
