// Package timer owns the systemd timers of jobs: it writes them, starts and stops them, and
// asks when they elapse next.
//
// For most uses, call [Calendar] to judge a schedule, and [System.Enable] to have it
// followed. The service that a timer starts, tidemark-job@.service, is not of this package:
// it comes with the program.
//
// The package calls systemctl and systemd-analyze. It refuses to replace or remove a timer
// that was changed by hand (ErrChanged). It is safe for concurrent use, of which the last
// of several writers wins.
package timer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tidemark/linux/atomicfile"
)

var (
	// ErrNoSystemd says that systemd is not installed.
	ErrNoSystemd = errors.New("systemd is not installed")
	// ErrSchedule says that systemd does not understand a schedule.
	ErrSchedule = errors.New("no calendar expression of systemd")
	// ErrChanged says that a timer was not written by this package, or was changed since.
	ErrChanged = errors.New("it was changed by hand")
	// ErrNoService says that the service that the timers start is not installed.
	ErrNoService = errors.New("tidemark-job@.service is not installed")
)

const (
	folder    = "etc/systemd/system"
	service   = "tidemark-job@.service"
	lateTimer = "tidemark-late.timer"
)

// serviceFolders is where systemd looks for the service.
var serviceFolders = [...]string{folder, "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"}

// System is a system with systemd. The zero value is the running one.
type System struct {
	// Root is the folder of a system that is not running, as an image that is being
	// made: timers are enabled there, and start when it boots.
	Root string
	// Force replaces and removes what was changed by hand.
	Force bool
}

// Timer says when a job runs.
type Timer struct {
	Job      string        // its name, which has no character that systemd would escape
	Schedule string        // see Calendar
	Jitter   time.Duration // the longest random delay
	MaxAge   bool          // the job can be late: have that watched
}

// Unit returns the name of the timer of a job.
func Unit(job string) string { return "tidemark-job@" + job + ".timer" }

func (s System) path(job string) string { return s.in(folder, Unit(job)) }

// in returns a path in the system.
func (s System) in(parts ...string) string {
	return filepath.Join(cmp.Or(s.Root, "/"), filepath.Join(parts...))
}

// text returns the unit: its first line names a sum of what follows.
func (t Timer) text() string {
	body := fmt.Sprintf(`# To change it by hand, use "systemctl edit %s", which keeps the change apart.

[Unit]
Description=When tidemark's job %s runs
Documentation=man:tidemark-job(1)

[Timer]
OnCalendar=%s
Persistent=true
`, Unit(t.Job), t.Job, t.Schedule)
	if t.Jitter > 0 {
		body += fmt.Sprintf("RandomizedDelaySec=%dms\n", t.Jitter.Milliseconds())
	}
	body += "\n[Install]\nWantedBy=timers.target\n"
	return firstLine(body) + body
}

func firstLine(body string) string {
	return fmt.Sprintf("# Written by \"tidemark job enable\", sum %08x.\n", crc32.ChecksumIEEE([]byte(body)))
}

// read returns the timer of a job as it is installed, "" for none. The error wraps
// ErrChanged.
func (s System) read(job string) (string, error) {
	b, err := os.ReadFile(s.path(job))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("timer: %w", err)
	}
	text := string(b)
	_, body, _ := strings.Cut(text, "\n")
	if text != firstLine(body)+body {
		return text, fmt.Errorf("timer: %s: %w", s.path(job), ErrChanged)
	}
	return text, nil
}

// Enabled reports whether a job has a timer that starts at boot, and whether that is the
// one that t describes.
func (s System) Enabled(t Timer) (enabled, same bool) {
	_, err := os.Lstat(s.in(folder, "timers.target.wants", Unit(t.Job)))
	// One that was changed by hand is another, and so is one that cannot be read.
	text, _ := s.read(t.Job)
	return err == nil, text == t.text()
}

// Jobs returns the names of the jobs that have a timer.
func (s System) Jobs() ([]string, error) {
	names, err := filepath.Glob(s.path("*"))
	for i, name := range names {
		names[i] = strings.TrimSuffix(strings.TrimPrefix(filepath.Base(name), "tidemark-job@"), ".timer")
	}
	return names, err
}

// Enable writes the timer of a job and starts it, now and at every boot. A run that was
// missed while the machine was down is made up for. The error wraps ErrChanged,
// ErrNoService or ErrNoSystemd.
func (s System) Enable(ctx context.Context, t Timer) error {
	if !slices.ContainsFunc(serviceFolders[:], func(dir string) bool {
		_, err := os.Stat(s.in(dir, service))
		return err == nil
	}) {
		return fmt.Errorf("timer: %w", ErrNoService)
	}
	if _, err := s.read(t.Job); err != nil && !(s.Force && errors.Is(err, ErrChanged)) {
		return err
	}
	path := s.path(t.Job)
	if err := atomicfile.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("timer: %w", err)
	}
	err := atomicfile.Write(path, atomicfile.Options{Mode: 0o644, Durable: true}, func(f *os.File) error {
		_, err := f.WriteString(t.text())
		return err
	})
	if err != nil {
		return fmt.Errorf("timer: %w", err)
	}
	units := []string{Unit(t.Job)}
	if t.MaxAge {
		units = append(units, lateTimer)
	}
	if err := s.reload(ctx); err != nil {
		return err
	}
	if err := s.switchUnits(ctx, "enable", units...); err != nil || s.Root != "" {
		return err
	}
	// One that runs already takes over its new schedule by being started anew.
	_, err = call(ctx, "systemctl", append([]string{"restart"}, units...)...)
	return err
}

// Disable stops the timer of a job and removes it; a run that is under way goes on. It
// reports whether there was one. The error wraps ErrChanged or ErrNoSystemd.
func (s System) Disable(ctx context.Context, job string) (bool, error) {
	text, err := s.read(job)
	if err != nil && !(s.Force && errors.Is(err, ErrChanged)) {
		return false, err
	}
	if text == "" {
		return false, nil
	}
	units := []string{Unit(job)}
	if others, err := s.Jobs(); err == nil && len(others) == 1 {
		units = append(units, lateTimer) // nothing is left to be late
	}
	if err := s.switchUnits(ctx, "disable", units...); err != nil {
		return false, err
	}
	if err := os.Remove(s.path(job)); err != nil {
		return false, fmt.Errorf("timer: %w", err)
	}
	return true, s.reload(ctx)
}

func (s System) reload(ctx context.Context) error {
	if s.Root != "" {
		return nil
	}
	_, err := call(ctx, "systemctl", "daemon-reload")
	return err
}

// switchUnits enables or disables units, and starts or stops them in a running system.
func (s System) switchUnits(ctx context.Context, verb string, units ...string) error {
	args := []string{verb, "--quiet"}
	switch {
	case s.Root != "":
		args = append(args, "--root="+s.Root)
	case verb == "disable":
		args = append(args, "--now")
	}
	_, err := call(ctx, "systemctl", append(args, units...)...)
	return err
}

// call runs a program of systemd and returns what it printed. The error wraps
// ErrNoSystemd.
func call(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER=")
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", fmt.Errorf("timer: %w: there is no %s", ErrNoSystemd, name)
	case err != nil:
		return "", fmt.Errorf("timer: %s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
