package vault

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	format "tidemark/format/vault"
)

// ErrKeepsNothing says that a retention would leave a disk without any point.
var ErrKeepsNothing = errors.New("no point would be kept")

// Retention says which points of a disk are kept: those that any of its rules keeps. Hours, days
// and so on are those of the calendar of a time zone; of those that have points the newest ones
// count, and of each the last point is kept.
type Retention struct {
	Last    int      // points
	Hourly  int      // hours
	Daily   int      // days
	Weekly  int      // weeks, which begin on Monday
	Monthly int      // months
	Yearly  int      // years
	Within  Span     // all points of that time before the newest one
	Tags    []string // all points with one of them
}

// None reports whether there is no rule.
func (r Retention) None() bool {
	return r.Last == 0 && r.Hourly == 0 && r.Daily == 0 && r.Weekly == 0 && r.Monthly == 0 && r.Yearly == 0 && r.Within == Span{} && len(r.Tags) == 0
}

// Keep returns the points that are kept, with the rules that keep each of them. The points may be of
// several disks, each of which is looked at for itself. The zone and the present time are those of
// now. The error wraps ErrKeepsNothing.
func (r Retention) Keep(points []Point, now time.Time) (map[format.PointName][]string, error) {
	disks := map[format.ID][]Point{}
	for _, p := range points {
		disks[p.Name.Disk] = append(disks[p.Name.Disk], p)
	}
	kept := map[format.PointName][]string{}
	for id, of := range disks {
		before := len(kept)
		r.keep(of, now, kept)
		if len(kept) == before {
			return nil, fmt.Errorf("vault: disk %v: %w", id, ErrKeepsNothing)
		}
	}
	return kept, nil
}

// keep notes which points of one disk are kept.
func (r Retention) keep(points []Point, now time.Time, kept map[format.PointName][]string) {
	slices.SortStableFunc(points, func(a, b Point) int { return b.Moment.Compare(a.Moment) }) // the newest first
	zone := now.Location()
	calendar := func(form string) func(Point) string {
		return func(p Point) string { return p.Moment.In(zone).Format(form) }
	}
	for _, rule := range []struct {
		name string
		n    int
		of   func(Point) string
	}{
		{"last", r.Last, func(p Point) string { return p.Name.String() }},
		{"hourly", r.Hourly, calendar("2006-01-02T15-0700")}, // an hour that comes twice is two
		{"daily", r.Daily, calendar(time.DateOnly)},
		{"weekly", r.Weekly, func(p Point) string { return fmt.Sprint(p.Moment.In(zone).ISOWeek()) }},
		{"monthly", r.Monthly, calendar("2006-01")},
		{"yearly", r.Yearly, calendar("2006")},
	} {
		for _, p := range lastOfEach(points, rule.of, rule.n) {
			kept[p.Name] = append(kept[p.Name], rule.name)
		}
	}
	newest := points[0].Moment
	if newest.After(now) { // a clock was ahead
		newest = now
	}
	oldest := r.Within.before(newest.In(zone))
	for _, p := range points {
		if r.Within != (Span{}) && !p.Moment.Before(oldest) {
			kept[p.Name] = append(kept[p.Name], "within")
		}
		if slices.ContainsFunc(p.Tags, func(t string) bool { return slices.Contains(r.Tags, t) }) {
			kept[p.Name] = append(kept[p.Name], "tag")
		}
	}
}

// lastOfEach returns the last point of each of the first n periods that have one. One that lost
// something stands for a period only where that has no other.
func lastOfEach(points []Point, period func(Point) string, n int) (last []Point) {
	at := map[string]int{}
	for _, p := range points {
		i, seen := at[period(p)]
		switch {
		case !seen && len(last) < n:
			at[period(p)] = len(last)
			last = append(last, p)
		case seen && last[i].Lost && !p.Lost:
			last[i] = p
		}
	}
	return last
}

// Span is a length of time by the calendar. It is a flag, as 1y6m2w3d12h.
type Span struct{ Years, Months, Days, Hours int }

func (s Span) before(t time.Time) time.Time {
	return t.AddDate(-s.Years, -s.Months, -s.Days).Add(-time.Duration(s.Hours) * time.Hour)
}

// Length returns how long it is until then.
func (s Span) Length(until time.Time) time.Duration { return until.Sub(s.before(until)) }

// Type implements pflag.Value.
func (s *Span) Type() string { return "time" }

// String implements pflag.Value.
func (s *Span) String() string {
	if *s == (Span{}) {
		return ""
	}
	return fmt.Sprintf("%dy%dm%dd%dh", s.Years, s.Months, s.Days, s.Hours)
}

// Set implements pflag.Value.
func (s *Span) Set(text string) error {
	const most = 1 << 20 // of each
	var span Span
	rest := text
	for rest != "" {
		i := max(strings.IndexAny(rest, "ymwdh"), 0)
		n, err := strconv.Atoi(rest[:i])
		if err != nil || n < 0 || n > most {
			return fmt.Errorf("%q is no time: want one as 2y, 6m, 3w, 10d, 36h or 1y6m", text)
		}
		switch rest[i] {
		case 'y':
			span.Years += n
		case 'm':
			span.Months += n
		case 'w':
			span.Days += 7 * n
		case 'd':
			span.Days += n
		case 'h':
			span.Hours += n
		}
		rest = rest[i+1:]
	}
	if span == (Span{}) {
		return errors.New("a time of nothing")
	}
	*s = span
	return nil
}
