package timer_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/agent/timer"
)

// system makes the folder of a system that has systemd's targets and the units that come
// with the program.
func system(t *testing.T) timer.System {
	t.Helper()
	root := t.TempDir()
	units := filepath.Join(root, "usr/lib/systemd/system")
	for _, dir := range []string{units, filepath.Join(root, "usr/bin"), filepath.Join(root, "etc/systemd/system")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ours, err := filepath.Glob("../../dist/systemd/*")
	if err != nil || len(ours) != 4 {
		t.Fatalf("%q, %v", ours, err)
	}
	theirs, err := filepath.Glob("/usr/lib/systemd/system/*.target")
	if err != nil || len(theirs) == 0 {
		t.Fatalf("systemd is not installed (scripts/setup): %v", err)
	}
	for _, unit := range append(ours, theirs...) {
		copyFile(t, unit, filepath.Join(units, filepath.Base(unit)), 0o644)
	}
	copyFile(t, "/bin/true", filepath.Join(root, "usr/bin/tidemark"), 0o755)
	return timer.System{Root: root}
}

func copyFile(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, mode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func nightly(job string) timer.Timer {
	return timer.Timer{Job: job, Schedule: "*-*-* 02:30", Jitter: 90 * time.Second, MaxAge: true}
}

func enable(t *testing.T, s timer.System, all ...timer.Timer) {
	t.Helper()
	for _, tm := range all {
		if err := s.Enable(t.Context(), tm); err != nil {
			t.Fatal(err)
		}
	}
}

func unit(s timer.System, job string) string {
	return filepath.Join(s.Root, "etc/systemd/system", timer.Unit(job))
}

func wants(s timer.System) string {
	names, _ := filepath.Glob(filepath.Join(s.Root, "etc/systemd/system/timers.target.wants/*"))
	for i, name := range names {
		names[i] = filepath.Base(name)
	}
	return strings.Join(names, " ")
}

func TestSystemdTakesTheUnits(t *testing.T) {
	s := system(t)
	enable(t, s, nightly("a-b.c_d"))
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", "--root="+s.Root,
		timer.Unit("a-b.c_d"), "tidemark-job@a-b.c_d.service", "tidemark-late.timer", "tidemark-late.service").CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
	b, err := os.ReadFile(unit(s, "a-b.c_d"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"OnCalendar=*-*-* 02:30", "Persistent=true", "RandomizedDelaySec=90000ms", "WantedBy=timers.target"} {
		if !strings.Contains(string(b), "\n"+line+"\n") {
			t.Errorf("%s is not in:\n%s", line, b)
		}
	}
}

func TestATimerIsThereUntilItIsDisabled(t *testing.T) {
	s := system(t)
	enable(t, s, nightly("one"), nightly("two"), nightly("one"))
	if got := wants(s); got != "tidemark-job@one.timer tidemark-job@two.timer tidemark-late.timer" {
		t.Errorf("enabled: %s", got)
	}
	if enabled, same := s.Enabled(nightly("one")); !enabled || !same {
		t.Error("it is not told that it is enabled")
	}
	other := nightly("one")
	other.Schedule = "hourly"
	if enabled, same := s.Enabled(other); !enabled || same {
		t.Error("another schedule is not told")
	}
	for _, job := range []string{"one", "two"} {
		if was, err := s.Disable(t.Context(), job); !was || err != nil {
			t.Errorf("%v, %v", was, err)
		}
	}
	if got := wants(s); got != "" {
		t.Errorf("still enabled: %s", got)
	}
	if enabled, _ := s.Enabled(nightly("one")); enabled {
		t.Error("it is told that it is enabled")
	}
	if names, err := s.Jobs(); len(names) > 0 || err != nil {
		t.Errorf("%q, %v", names, err)
	}
	if was, err := s.Disable(t.Context(), "one"); was || err != nil {
		t.Errorf("%v, %v", was, err)
	}
}

func TestWhatWasChangedByHandStaysUnlessForced(t *testing.T) {
	s := system(t)
	enable(t, s, nightly("one"))
	f, err := os.OpenFile(unit(s, "one"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString("# mine\n")
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(unit(s, "one"))
	if err := s.Enable(t.Context(), nightly("one")); !errors.Is(err, timer.ErrChanged) {
		t.Errorf("enable: %v", err)
	}
	if _, err := s.Disable(t.Context(), "one"); !errors.Is(err, timer.ErrChanged) {
		t.Errorf("disable: %v", err)
	}
	if after, _ := os.ReadFile(unit(s, "one")); string(after) != string(before) {
		t.Errorf("now it is %s", after)
	}
	s.Force = true
	enable(t, s, nightly("one"))
	if _, same := s.Enabled(nightly("one")); !same {
		t.Error("it was not replaced")
	}
}

func TestNothingIsEnabledThatHasNoService(t *testing.T) {
	s := system(t)
	if err := os.Remove(filepath.Join(s.Root, "usr/lib/systemd/system/tidemark-job@.service")); err != nil {
		t.Fatal(err)
	}
	if err := s.Enable(t.Context(), nightly("one")); !errors.Is(err, timer.ErrNoService) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(unit(s, "one")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a timer was written: %v", err)
	}
}

func TestSchedulesAreSystemds(t *testing.T) {
	times, err := timer.Calendar(t.Context(), "*-*-* 02:30:00 UTC", 3)
	if err != nil || len(times) != 3 || !strings.HasSuffix(times[0], " 02:30:00 UTC") || times[1] == times[0] {
		t.Errorf("%q, %v", times, err)
	}
	for _, bad := range []string{"every night", "", "-x", "2001-01-01"} {
		if times, err := timer.Calendar(t.Context(), bad, 1); !errors.Is(err, timer.ErrSchedule) {
			t.Errorf("%q: %q, %v", bad, times, err)
		}
	}
}

func TestWithoutSystemdThatIsSaid(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := timer.Calendar(t.Context(), "daily", 1); !errors.Is(err, timer.ErrNoSystemd) {
		t.Errorf("calendar: %v", err)
	}
	if _, err := timer.Next(t.Context()); !errors.Is(err, timer.ErrNoSystemd) {
		t.Errorf("next: %v", err)
	}
}

// fake puts a program in the way of systemctl, which here has nobody to talk to.
func fake(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/systemctl", []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestTheNextRunsAreThoseThatSystemdTells(t *testing.T) {
	// As systemd 252 prints it.
	fake(t, `test "$*" = "list-timers --all --output=json tidemark-job@*.timer" || exit 1
echo '[{"next":1795833000000000,"left":1795833000000000,"last":0,"passed":0,"unit":"tidemark-job@srv.timer","activates":"tidemark-job@srv.service"},{"next":0,"left":0,"last":0,"passed":0,"unit":"tidemark-job@once.timer","activates":"tidemark-job@once.service"}]'`)
	next, err := timer.Next(t.Context())
	if err != nil || len(next) != 1 || !next["srv"].Equal(time.Unix(1795833000, 0)) {
		t.Errorf("%v, %v", next, err)
	}
}
