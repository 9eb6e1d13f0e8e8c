package vault

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	format "tidemark/format/vault"
)

// taken makes points of a disk, of which each is a time and tags.
func taken(t *testing.T, disk byte, zone *time.Location, all ...string) (points []Point) {
	t.Helper()
	for i, text := range all {
		when, tags, _ := strings.Cut(text, " ")
		lost := strings.HasPrefix(when, "!")
		at, err := time.ParseInLocation("2006-01-02T15:04", strings.TrimPrefix(when, "!"), zone)
		if err != nil {
			t.Fatal(err)
		}
		p := Point{Name: format.PointName{Disk: format.ID{disk}, Time: at, ID: format.ID{byte(i + 1)}}, Lost: lost}
		p.Moment, p.Tags = at.UTC(), strings.Fields(tags)
		points = append(points, p)
	}
	return points
}

func TestAPointThatAnyRuleKeepsIsKept(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip(err) // a machine without time zones
	}
	days := []string{
		"2025-12-31T23:30", "2026-01-01T00:30", "2026-01-04T12:00", "2026-01-05T12:00", "2026-01-05T13:00 release",
		"2026-01-05T13:30", "2026-02-01T00:15", "2026-02-01T08:00",
	}
	within := func(text string) (s Span) {
		if err := s.Set(text); err != nil {
			t.Fatal(err)
		}
		return s
	}
	now := time.Date(2026, 2, 1, 9, 0, 0, 0, berlin)
	for _, c := range []struct {
		name   string
		r      Retention
		points []string
		keeps  []int
	}{
		{"last", Retention{Last: 2}, days, []int{6, 7}},
		{"more than there are", Retention{Last: 100}, days, []int{0, 1, 2, 3, 4, 5, 6, 7}},
		{"hourly", Retention{Hourly: 4}, days, []int{3, 5, 6, 7}},
		{"daily", Retention{Daily: 3}, days, []int{2, 5, 7}},
		{"weekly: 4 January is a Sunday, 1 February too", Retention{Weekly: 3}, days, []int{2, 5, 7}},
		{"monthly, by the local calendar", Retention{Monthly: 2}, days, []int{5, 7}},
		{"yearly, by the local calendar", Retention{Yearly: 2}, days, []int{0, 7}},
		{"within a month: since 1 January 08:00", Retention{Within: within("1m")}, days, []int{2, 3, 4, 5, 6, 7}},
		{"within 12 hours", Retention{Within: within("12h")}, days, []int{6, 7}},
		{"tags", Retention{Tags: []string{"release", "other"}}, days, []int{4}},
		{"any of several", Retention{Last: 1, Yearly: 2, Tags: []string{"release"}}, days, []int{0, 4, 7}},
		{
			"an hour that comes twice is two",
			Retention{Hourly: 2},
			[]string{"2026-10-25T01:30", "2026-10-25T02:30", "2026-10-25T03:30"},
			[]int{1, 2},
		},
		{"one that lost something takes no place", Retention{Daily: 1}, []string{"2026-01-01T10:00", "!2026-01-01T11:00"}, []int{0}},
		{"but stands where there is no other", Retention{Daily: 2}, []string{"2026-01-01T10:00", "!2026-01-02T11:00"}, []int{0, 1}},
		{"a clock that was a year ahead", Retention{Within: within("1d")}, []string{"2026-01-31T10:00", "2027-01-31T10:00"}, []int{0, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			points := taken(t, 1, berlin, c.points...)
			kept, err := c.r.Keep(slices.Clone(points), now)
			if err != nil {
				t.Fatal(err)
			}
			var got []int
			for i, p := range points {
				if len(kept[p.Name]) > 0 {
					got = append(got, i)
				}
			}
			if !slices.Equal(got, c.keeps) {
				t.Errorf("kept %v, want %v", got, c.keeps)
			}
		})
	}
}

func TestEachDiskIsLookedAtForItself(t *testing.T) {
	points := append(taken(t, 1, time.UTC, "2026-01-01T10:00", "2026-01-02T10:00"), taken(t, 2, time.UTC, "2020-01-01T10:00 x")...)
	kept, err := Retention{Last: 1}.Keep(points, time.Now())
	if err != nil || len(kept) != 2 || kept[points[2].Name] == nil {
		t.Errorf("%v, %v", kept, err)
	}
	for _, r := range []Retention{{}, {Tags: []string{"x"}}, {Tags: []string{"y"}}} {
		if kept, err := r.Keep(points, time.Now()); !errors.Is(err, ErrKeepsNothing) || kept != nil {
			t.Errorf("%+v: %v, %v", r, kept, err)
		}
	}
	if !(Retention{}).None() || (Retention{Tags: []string{"x"}}).None() {
		t.Error("None")
	}
}

func TestSpansOfTime(t *testing.T) {
	for text, want := range map[string]Span{"2y": {Years: 2}, "1y6m2w3d12h": {1, 6, 17, 12}, "36h": {Hours: 36}} {
		var s Span
		if err := s.Set(text); err != nil || s != want {
			t.Errorf("%s: %+v, %v", text, s, err)
		}
	}
	for _, text := range []string{"", "x", "2", "y", "-1d", "1d2", "99999999999999999999d", "0d", "5s"} {
		var s Span
		if err := s.Set(text); err == nil {
			t.Errorf("%q: accepted as %+v", text, s)
		}
	}
}
