//go:build linux

package tracker_test

import (
	"context"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/test/vm/guest"
	"tidemark/track"
	"tidemark/track/bpf"
)

const granule = 4096

// openPath is bpf.Open of the device at a path.
func openPath(ctx context.Context, path string, opts bpf.Options) (*bpf.Tracker, error) {
	d, err := block.Open(path, block.Options{})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return bpf.Open(ctx, d, opts)
}

func openTracker(t *testing.T, dev string) *bpf.Tracker {
	t.Helper()
	// A bio-based disk settles when no write is in flight; nobody else writes here.
	return openTrackerWith(t, dev, bpf.Options{Drain: func(context.Context) error { return nil }})
}

func openTrackerWith(t *testing.T, dev string, opts bpf.Options) *bpf.Tracker {
	t.Helper()
	l, err := openPath(t.Context(), dev, opts)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := bpf.Stop(context.Background(), dev, opts); err != nil {
			t.Error(err)
		}
	})
	return l
}

func cut(t *testing.T, l *bpf.Tracker) track.Mark {
	t.Helper()
	c, err := l.Cut(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c.Doubt {
		t.Log("doubt at", c.Mark)
	}
	return c.Mark
}

func changes(t *testing.T, l *bpf.Tracker, since, until track.Mark) extent.Set {
	t.Helper()
	s, err := l.Changes(t.Context(), since, until)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// mustHold fails when part of want is missing in got.
func mustHold(t *testing.T, what string, got, want extent.Set) {
	t.Helper()
	if missing := want.Subtract(got); !missing.Empty() {
		t.Errorf("%s: %d of %d bytes missing, first at %v", what, missing.Bytes(), want.Bytes(), missing.Extents()[0])
	}
}

// Everything written, zeroed or discarded between two marks is in their changes, on
// every kind of device.
func TestEveryChangeIsSeen(t *testing.T) {
	for _, s := range stacks() {
		t.Run(s.name, func(t *testing.T) {
			dev := s.make(t)
			d := guest.OpenDirect(t, dev)
			l := openTracker(t, dev)
			for name, change := range kindsOfChange() {
				before := cut(t, l)
				want := change(t, d)
				after := cut(t, l)
				got := changes(t, l, before, after)
				mustHold(t, name, got, want)
				if extra := got.Subtract(want.Align(granule, d.Size())); !extra.Empty() {
					t.Logf("%s: %d bytes more than were written", name, extra.Bytes())
				}
				if quiet := changes(t, l, after, ""); !quiet.Empty() {
					t.Logf("%s: %d bytes changed after it", name, quiet.Bytes())
				}
			}
		})
	}
}

// kindsOfChange change the device and return what they changed.
func kindsOfChange() map[string]func(*testing.T, *block.Device) extent.Set {
	return map[string]func(*testing.T, *block.Device) extent.Set{
		"small writes": func(t *testing.T, d *block.Device) extent.Set {
			var exts []extent.Extent
			for i := range int64(40) {
				exts = append(exts, writeAt(t, d, (i*i*7919*granule)%(d.Size()-granule)/granule*granule, granule))
			}
			return extent.NewSet(exts...)
		},
		"a large write": func(t *testing.T, d *block.Device) extent.Set {
			return extent.NewSet(writeAt(t, d, 3*granule, 8<<20))
		},
		"the ends": func(t *testing.T, d *block.Device) extent.Set {
			return extent.NewSet(writeAt(t, d, 0, granule), writeAt(t, d, d.Size()-granule, granule))
		},
		"a buffered write": func(t *testing.T, d *block.Device) extent.Set {
			f, err := os.OpenFile(d.File().Name(), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt(make([]byte, 1<<20), 5<<20); err != nil {
				t.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
			return extent.NewSet(extent.Extent{Off: 5 << 20, Len: 1 << 20})
		},
		"zeroes": func(t *testing.T, d *block.Device) extent.Set { return ioctlRange(t, d, unix.BLKZEROOUT, 2<<20, 9<<20) },
		"discard": func(t *testing.T, d *block.Device) extent.Set {
			return ioctlRange(t, d, unix.BLKDISCARD, 1<<20, 12<<20)
		},
	}
}

func writeAt(t *testing.T, d *block.Device, off int64, n int) extent.Extent {
	t.Helper()
	buf := block.AlignedBuffer(n)
	guest.Scramble(buf)
	if _, err := d.WriteAt(buf, off); err != nil {
		t.Fatal(err)
	}
	return extent.Extent{Off: off, Len: int64(n)}
}

// ioctlRange zeroes or discards a range. A device that cannot discard changes nothing.
func ioctlRange(t *testing.T, d *block.Device, request uint, off, n int64) extent.Set {
	t.Helper()
	err := rangeIoctl(d.File(), request, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) && request == unix.BLKDISCARD {
		t.Log("cannot discard")
		return extent.Set{}
	}
	if err != nil {
		t.Fatal(err)
	}
	return extent.NewSet(extent.Extent{Off: off, Len: n})
}
