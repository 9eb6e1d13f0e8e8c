package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	format "tidemark/format/vault"
)

var (
	// ErrNoPoint says that there is no such point.
	ErrNoPoint = errors.New("there is no such point")
	// ErrPointName says that a text names no point, or more than one.
	ErrPointName = errors.New("it names no single point")
)

// Latest is the word for the point that was written last.
const Latest = "latest"

// Find returns the point that a text names, and its disk: by the beginning of its id; as
// Latest, where the vault has one disk; as DISK@Latest; as DISK@TIME, the last one of that time or
// before, TIME being as 2026-11-27, 2026-11-27T10:00 or 2026-11-27T10:00:30 in the zone of now, or
// with a zone of its own; or as DISK@-AGE, the last one at least as old, as -2d, -36h or -1w. It
// reads no other manifest than that point's. The error wraps ErrNoPoint or ErrPointName.
func (v *Vault) Find(ctx context.Context, text string, now time.Time) (Point, Disk, error) {
	p, d, err := v.find(ctx, text, now)
	if err != nil {
		return Point{}, Disk{}, fmt.Errorf("vault: %v: point %q: %w", v.store, text, err)
	}
	return p, d, nil
}

func (v *Vault) find(ctx context.Context, text string, now time.Time) (p Point, d Disk, err error) {
	all, err := v.Disks(ctx)
	if err != nil {
		return p, d, err
	}
	i := strings.LastIndexByte(text, '@')
	switch {
	case i >= 0:
		name, when := text[:i], text[i+1:]
		at := slices.IndexFunc(all, func(d Disk) bool { return d.Name == name })
		if at < 0 {
			return p, d, fmt.Errorf("%w: there is no disk %q", ErrNoPoint, name)
		}
		p, err = v.at(ctx, all[at], when, now)
		return p, all[at], err
	case text == Latest && len(all) == 1:
		p, err = v.at(ctx, all[0], Latest, now)
		return p, all[0], err
	case text == Latest:
		return p, d, fmt.Errorf("%w: the vault has %d disks: %s@latest", ErrPointName, len(all), names(all))
	}
	return v.byID(ctx, text, all)
}

func names(all []Disk) string {
	var list []string
	for _, d := range all {
		list = append(list, d.Name)
	}
	return strings.Join(list, "|")
}

// at returns the last point of a disk of that time.
func (v *Vault) at(ctx context.Context, d Disk, when string, now time.Time) (Point, error) {
	if when == Latest {
		p, err := v.Newest(ctx, d.ID)
		if err == nil && p == nil {
			err = fmt.Errorf("%w: disk %s has none", ErrNoPoint, d.Name)
		}
		if err != nil {
			return Point{}, err
		}
		return *p, nil
	}
	last, err := moment(when, now)
	if err != nil {
		return Point{}, err
	}
	all, err := v.pointNames(ctx, d.ID)
	if err != nil {
		return Point{}, err
	}
	var found *Point
	for _, name := range slices.Backward(all) {
		if name.Time.After(last) {
			continue
		}
		if found != nil && !name.Time.Equal(found.Name.Time) {
			break // names tell seconds, in which there may be several
		}
		p, err := v.Point(ctx, name)
		if err != nil {
			return Point{}, err
		}
		if found == nil || p.Moment.After(found.Moment) {
			found = &p
		}
	}
	if found != nil {
		return *found, nil
	}
	if len(all) == 0 {
		return Point{}, fmt.Errorf("%w: disk %s has none", ErrNoPoint, d.Name)
	}
	return Point{}, fmt.Errorf("%w: the first of disk %s is of %s", ErrNoPoint, d.Name, all[0].Time.In(now.Location()).Format(time.RFC3339))
}

// moment reads a time, or an age.
func moment(text string, now time.Time) (time.Time, error) {
	if old, is := strings.CutPrefix(text, "-"); is {
		ago, err := parseAge(old)
		return now.Add(-ago), err
	}
	for _, form := range []string{time.RFC3339, "2006-01-02T15:04Z07:00", "2006-01-02T15:04:05", "2006-01-02T15:04"} {
		if t, err := time.ParseInLocation(form, text, now.Location()); err == nil {
			return t, nil
		}
	}
	if t, err := time.ParseInLocation(time.DateOnly, text, now.Location()); err == nil {
		return t.AddDate(0, 0, 1).Add(-time.Second), nil // the whole day
	}
	return time.Time{}, fmt.Errorf("%w: %q is no time, as 2026-11-27T10:00, and no age, as -2d", ErrPointName, text)
}

func parseAge(text string) (time.Duration, error) {
	const day = 24 * time.Hour
	for unit, long := range map[string]time.Duration{"d": day, "w": 7 * day} {
		if digits, is := strings.CutSuffix(text, unit); is {
			n, err := strconv.ParseUint(digits, 10, 16)
			if err != nil {
				break
			}
			return time.Duration(n) * long, nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%w: -%s is no age: want one as -2d, -36h or -1w", ErrPointName, text)
	}
	return d, nil
}

// byID returns the point whose id begins with text.
func (v *Vault) byID(ctx context.Context, text string, all []Disk) (p Point, d Disk, err error) {
	if text == "" || strings.Trim(text, "0123456789abcdef") != "" {
		return p, d, fmt.Errorf("%w: want an id, latest, DISK@latest, DISK@2026-11-27T10:00 or DISK@-2d", ErrPointName)
	}
	points, err := v.pointNames(ctx, format.ID{})
	if err != nil {
		return p, d, err
	}
	points = slices.DeleteFunc(points, func(n format.PointName) bool { return !strings.HasPrefix(n.ID.String(), text) })
	switch len(points) {
	case 0:
		return p, d, ErrNoPoint
	case 1:
	default:
		return p, d, fmt.Errorf("%w: %d begin so", ErrPointName, len(points))
	}
	if p, err = v.Point(ctx, points[0]); err != nil {
		return p, d, err
	}
	for _, d := range all {
		if d.ID == p.Name.Disk {
			return p, d, nil
		}
	}
	return p, Disk{ID: p.Name.Disk, Disk: format.Disk{Name: p.Name.Disk.String()[:8]}}, nil // that of a disk whose object is lost
}
