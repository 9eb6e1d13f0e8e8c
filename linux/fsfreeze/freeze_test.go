package fsfreeze_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/fsfreeze"
	"tidemark/linux/mounts/mountstest"
)

func TestWritersWaitForTheThaw(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			dir := disk(t, kind)
			g := arm(t, dir)
			if err := g.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			wantThawed(t, dir)
			before := time.Now()
			mustFreeze(t, g, time.Minute)
			if s := g.Still(); s.Before(before) || s.After(time.Now()) {
				t.Errorf("stands still since %v, want a moment after %v", s, before)
			}
			wantFrozen(t, dir)
			frozen := time.Since(before)
			if err := g.Thaw(); err != nil {
				t.Fatal(err)
			}
			wantThawed(t, dir)
			if f := g.Frozen(); f < blockedFor || f > frozen+thawedBy {
				t.Errorf("frozen for %v, want about %v", f, frozen)
			}
			if err := errors.Join(g.Thaw(), g.Close()); err != nil {
				t.Errorf("thawed again: %v", err)
			}
		})
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	dir := disk(t, "ext4")
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	// The first one makes the runtime open its poller.
	var before int
	for i := range 3 {
		if i == 1 {
			before = count()
		}
		g := arm(t, dir)
		mustFreeze(t, g, 0)
		if err := g.Thaw(); err != nil {
			t.Fatal(err)
		}
		if !gone(g.Watchdog()) {
			t.Errorf("watchdog %d is still there", g.Watchdog())
		}
	}
	if after := count(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestFrozenByOthersIsBusyAndStaysTheirs(t *testing.T) {
	mine, theirs := disk(t, "ext4"), disk(t, "ext4")
	mountstest.Run(t, "fsfreeze", "--freeze", theirs)
	g := arm(t, mine, theirs)
	_, err := g.Freeze(t.Context(), time.Minute)
	if !errors.Is(err, fsfreeze.ErrBusy) || !strings.Contains(err.Error(), theirs) {
		t.Errorf("freeze: %v, want %s busy", err, theirs)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	wantThawed(t, mine)
	wantFrozen(t, theirs)
	mountstest.Run(t, "fsfreeze", "--unfreeze", theirs)
	wantThawed(t, theirs)
}

func TestFilesystemWithoutFreezeIsPassedOver(t *testing.T) {
	dir, ram := disk(t, "ext4"), t.TempDir()
	mountstest.MountAt(t, "none", ram, "-t", "tmpfs")
	g := arm(t, ram, dir)
	passed, err := g.Freeze(t.Context(), time.Minute)
	if err != nil || len(passed) != 1 || passed[0] != ram {
		t.Fatalf("passed over %q, %v; want %s", passed, err, ram)
	}
	wantFrozen(t, dir)
	if err := g.Thaw(); err != nil {
		t.Fatal(err)
	}
	wantThawed(t, dir, ram)
}

func TestWatchdogThawsWhenTheTimeIsUp(t *testing.T) {
	a, b := disk(t, "ext4"), disk(t, "xfs")
	g := arm(t, a, b)
	mustFreeze(t, g, time.Second)
	select {
	case <-g.Broken():
	case <-time.After(thawedBy):
		t.Fatal("nobody said that the time was up")
	}
	wantThawed(t, a, b)
	wantBroken(t, g.Thaw(), "time was up")
	wantBroken(t, g.Thaw(), "time was up")
}

func TestThawByOthersIsNoticed(t *testing.T) {
	a, b := disk(t, "ext4"), disk(t, "ext4")
	g := arm(t, a, b)
	mustFreeze(t, g, time.Minute)
	mountstest.Run(t, "fsfreeze", "--unfreeze", a)
	wantBroken(t, g.Thaw(), a)
	wantThawed(t, a, b)
}

func TestKilledWatchdogIsReplaced(t *testing.T) {
	a, b := disk(t, "ext4"), disk(t, "xfs")
	g := arm(t, a, b)
	mustFreeze(t, g, 0)
	if err := unix.Kill(g.Watchdog(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-g.Broken():
	case <-time.After(thawedBy):
		t.Fatal("nobody noticed")
	}
	wantThawed(t, a, b)
	wantBroken(t, g.Thaw(), "watchdog was killed")
}

func TestWatchdogKilledBeforeTheFreezeFreezesNothing(t *testing.T) {
	dir := disk(t, "ext4")
	g := arm(t, dir)
	if err := unix.Kill(g.Watchdog(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Freeze(t.Context(), 0); !errors.Is(err, fsfreeze.ErrNoWatchdog) {
		t.Errorf("freeze: %v, want no watchdog", err)
	}
	wantThawed(t, dir)
	if err := g.Close(); err != nil {
		t.Error(err)
	}
}

func TestStoppedWatchdogIsWoken(t *testing.T) {
	dir := disk(t, "ext4")
	g := arm(t, dir)
	mustFreeze(t, g, time.Minute)
	if err := unix.Kill(g.Watchdog(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := g.Thaw(); err != nil {
		t.Error(err)
	}
	wantThawed(t, dir)
}

func TestWatchdogIgnoresTheTerminalAndPoliteRequests(t *testing.T) {
	dir := disk(t, "ext4")
	g := arm(t, dir)
	mustFreeze(t, g, time.Minute)
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", g.Watchdog()))
	if err != nil {
		t.Fatal(err)
	}
	// After the name in parentheses: state, parent, group, session.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if fields[3] != strconv.Itoa(g.Watchdog()) {
		t.Errorf("session %s, want its own, %d", fields[3], g.Watchdog())
	}
	for _, s := range []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE, unix.SIGTSTP} {
		if err := unix.Kill(g.Watchdog(), s); err != nil {
			t.Fatal(err)
		}
	}
	wantFrozen(t, dir)
	if err := g.Thaw(); err != nil {
		t.Error(err)
	}
}

func TestWatchdogIsLockedInMemory(t *testing.T) {
	g := arm(t, disk(t, "ext4"))
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.Watchdog()))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(status), "VmLck:\t       0 kB") || !strings.Contains(string(status), "VmLck:") {
		t.Errorf("not locked:\n%s", status)
	}
	score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", g.Watchdog()))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(score)); mayLowerScore(t) && got != "-1000" {
		t.Errorf("oom_score_adj %q, want -1000", got)
	}
}

// mayLowerScore looks for CAP_SYS_RESOURCE, which containers often lack.
func mayLowerScore(t *testing.T) bool {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func TestArmGivesUpWithItsContext(t *testing.T) {
	dir := disk(t, "ext4")
	list, err := filesystems([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := fsfreeze.Arm(ctx, list); !errors.Is(err, fsfreeze.ErrNoWatchdog) || !errors.Is(err, context.Canceled) {
		t.Errorf("arm: %v", err)
	}
	if err := list[0].Dir.Close(); !errors.Is(err, os.ErrClosed) {
		mountstest.Eventually(t, "the folder is closed", func() bool { return errors.Is(list[0].Dir.Close(), os.ErrClosed) })
	}
}
