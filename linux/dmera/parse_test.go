package dmera

import (
	"errors"
	"testing"

	"tidemark/block"
	"tidemark/format/era"
	"tidemark/linux/dm"
)

// The lines are dmsetup's, on Linux 6.1.
func TestParseStatus(t *testing.T) {
	for _, c := range []struct {
		line string
		want Status
	}{
		{"8 18/2048 3 -", Status{Era: 3, MetadataBlockSize: 4096, UsedMetadataBlocks: 18, TotalMetadataBlocks: 2048}},
		{"8 24/2048 4294967295 73", Status{Era: 1<<32 - 1, MetadataBlockSize: 4096, UsedMetadataBlocks: 24, TotalMetadataBlocks: 2048, HeldSnapshot: 73}},
	} {
		if got, err := parseStatus(c.line); err != nil || got != c.want {
			t.Errorf("%q: %+v, %v", c.line, got, err)
		}
	}
	if _, err := parseStatus("Error"); !errors.Is(err, ErrFailed) {
		t.Errorf("Error: %v, want %v", err, ErrFailed)
	}
	for _, bad := range []string{"", "8", "8 18 3 -", "8 18/2048 3", "8 18/2048 -1 -", "8 18/2048 3 x", "8 18/2048 3 73x", "8 18/2048 4294967296 -", "a 1/2 3 -"} {
		if s, err := parseStatus(bad); err == nil {
			t.Errorf("%q was taken for %+v", bad, s)
		}
	}
}

func TestTableIsReadAsItIsWritten(t *testing.T) {
	want := table{sectors: 131072, meta: dm.Dev{Major: 254, Minor: 16}, data: dm.Dev{Major: 259, Minor: 1048575}, blockSectors: 4096}
	target := want.target()
	if target.Params != "254:16 259:1048575 4096" || target.Type != "era" || target.Start != 0 {
		t.Errorf("target %+v", target)
	}
	if got, err := parseTable(target); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "1:2 3:4", "1:2 3:4 0", "1:2 3:4 12", "1:2 3 8", "1 3:4 8", "1:2 3:4 8 9", "1:x 3:4 8"} {
		if got, err := parseTable(dm.Target{Type: "era", Params: bad}); err == nil {
			t.Errorf("%q was taken for %+v", bad, got)
		}
	}
}

// A whole last bitmap of the space map is no use to the kernel.
func TestUsableBlocks(t *testing.T) {
	for blocks, want := range map[int64]int64{
		100: 100, 16319: 16319, 16320: 0, 16321: 16321, 2 * 16320: 16320,
		era.MaxMetadataBlocks + 5: era.MaxMetadataBlocks - 16320,
	} {
		if got := usableBlocks(blocks*era.BlockSize + 4095); got != want {
			t.Errorf("%d blocks: %d usable, want %d", blocks, got, want)
		}
	}
}

func TestOverlap(t *testing.T) {
	disk := block.Identity{Path: "disk", Disk: "sdx", Major: 8, Minor: 0, DiskMajor: 8, Size: 100}
	part := func(minor uint32, start, size int64) block.Identity {
		return block.Identity{Path: "part", Disk: "sdx", Major: 8, Minor: minor, DiskMajor: 8, Start: start, Size: size}
	}
	other := block.Identity{Path: "other", Disk: "sdy", Major: 8, Minor: 16, DiskMajor: 8, DiskMinor: 16, Size: 100}
	for _, c := range []struct {
		a, b block.Identity
		want bool
	}{
		{disk, disk, true},
		{disk, part(1, 10, 20), true},
		{part(1, 10, 20), part(2, 30, 20), false},
		{part(1, 10, 20), part(2, 29, 20), true},
		{disk, other, false},
		{part(1, 0, 10), other, false},
	} {
		for _, err := range []error{refuseOverlap(nil, c.a, c.b), refuseOverlap(nil, c.b, c.a)} {
			if errors.Is(err, ErrRefused) != c.want {
				t.Errorf("%+v and %+v: %v", c.a, c.b, err)
			}
		}
	}
}

func TestSpansOverlapWhereBytesAreShared(t *testing.T) {
	for _, c := range []struct {
		a, b span
		want bool
	}{
		{span{"f", 0, 100}, span{"f", 0, 100}, true},
		{span{"f", 0, 100}, span{"g", 0, 100}, false},
		{span{"f", 0, 4096}, span{"f", 4096, 8192}, false},
		{span{"f", 0, 4097}, span{"f", 4096, 8192}, true},
	} {
		if c.a.overlaps(c.b) != c.want || c.b.overlaps(c.a) != c.want {
			t.Errorf("%+v and %+v: want %v", c.a, c.b, c.want)
		}
	}
}
