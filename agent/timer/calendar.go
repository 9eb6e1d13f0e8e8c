package timer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// Calendar asks systemd-analyze what a schedule means, and returns the next n times of it
// as systemd writes them. The error wraps ErrSchedule or ErrNoSystemd.
func Calendar(ctx context.Context, schedule string, n int) ([]string, error) {
	out, err := call(ctx, "systemd-analyze", "calendar", fmt.Sprintf("--iterations=%d", n), "--", schedule)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		return nil, fmt.Errorf("%q: %w (see man systemd.time): as daily, Mon..Fri 02:30, or *:0/15", schedule, ErrSchedule)
	}
	if err != nil {
		return nil, err
	}
	var times []string
	for line := range strings.Lines(out) {
		name, value, _ := strings.Cut(line, ":")
		if name = strings.TrimSpace(name); name == "Next elapse" || strings.HasPrefix(name, "Iter") {
			times = append(times, strings.TrimSpace(value))
		}
	}
	if len(times) == 0 || times[0] == "never" {
		return nil, fmt.Errorf("%q: %w that comes again", schedule, ErrSchedule)
	}
	return times, nil
}

// Next returns when the timers of jobs elapse next, by job; of a timer that is not running
// nothing. The error wraps ErrNoSystemd.
func Next(ctx context.Context) (map[string]time.Time, error) {
	out, err := call(ctx, "systemctl", "list-timers", "--all", "--output=json", Unit("*"))
	if err != nil {
		return nil, err
	}
	var list []struct {
		Unit string `json:"unit"`
		Next int64  `json:"next"` // microseconds since 1970; 0 for never
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("timer: systemctl list-timers: %w", err)
	}
	next := map[string]time.Time{}
	for _, t := range list {
		job := strings.TrimSuffix(strings.TrimPrefix(t.Unit, "tidemark-job@"), ".timer")
		if t.Next > 0 {
			next[job] = time.UnixMicro(t.Next)
		}
	}
	return next, nil
}
