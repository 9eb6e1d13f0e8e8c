package copies

import (
	"cmp"
	"context"
	"io"
	"os"
	"slices"
	"strings"

	"tidemark/extent"
	"tidemark/linux/layout"
	"tidemark/linux/mounts"
	"tidemark/transfer/names"
)

// Spot is a range of a target, and what lies there.
type Spot struct {
	extent.Extent
	Partition int      // its number; 0 outside of partitions, and where there are none
	Holds     string   // "ext4 filesystem", or what else has its signature; "" where nothing is known
	Files     []string // of an ext filesystem; its first layout.MaxBlocks blocks are looked up
}

// Where tells what lies in the ranges of the image or device at path: in which partition, in
// what, and in which files as far as debugfs can tell. Notes say in words what could not be
// told, and why. It changes nothing, and needs no lock.
func Where(ctx context.Context, path string, ranges extent.Set) (spots []Spot, notes []string, err error) {
	if path, err = names.Target(ctx, path); err != nil {
		return nil, nil, err
	}
	path = names.Absolute(path)
	disk, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer disk.Close()
	size, err := disk.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, nil, err
	}
	whole := layout.Partition{Extent: extent.Extent{Len: size}}
	parts := []layout.Partition{whole}
	holds := held(disk, whole)
	if strings.HasSuffix(holds, string(mounts.KindTable)) {
		inside, err := layout.Partitions(ctx, path)
		if err != nil {
			notes = append(notes, "in which partitions cannot be told: "+err.Error())
		}
		parts = append(inside, whole)
	}
	for _, p := range parts {
		within := ranges.Clip(p.Extent)
		if p == whole {
			within = ranges // also what is past the end
		}
		ranges = ranges.Subtract(extent.NewSet(p.Extent))
		if within.Empty() {
			continue
		}
		found, note := spotsIn(ctx, path, disk, p, within)
		spots = append(spots, found...)
		if note != "" && !slices.Contains(notes, note) {
			notes = append(notes, note)
		}
	}
	slices.SortFunc(spots, func(a, b Spot) int { return cmp.Compare(a.Off, b.Off) })
	return spots, notes, ctx.Err()
}

// spotsIn tells of the ranges that lie in one partition. The note says why the files cannot
// be told.
func spotsIn(ctx context.Context, path string, disk io.ReaderAt, p layout.Partition, ranges extent.Set) (spots []Spot, note string) {
	holds := held(disk, p)
	var inside []extent.Extent
	for _, e := range ranges.Extents() {
		spots = append(spots, Spot{Extent: e, Partition: p.Number, Holds: holds})
		inside = append(inside, extent.Extent{Off: e.Off - p.Off, Len: e.Len})
	}
	if !strings.HasPrefix(holds, "ext") || !strings.HasSuffix(holds, string(mounts.KindFilesystem)) {
		return spots, ""
	}
	files, err := layout.Files(ctx, path, p.Off, inside)
	if err != nil {
		return spots, "in which files cannot be told: " + err.Error()
	}
	for i := range spots {
		spots[i].Files = files[i]
	}
	return spots, ""
}

// held names what has a signature in a partition, "" where nothing has one that is known.
func held(disk io.ReaderAt, p layout.Partition) string {
	found, err := mounts.Probe(io.NewSectionReader(disk, p.Off, p.Len), p.Len)
	if err != nil || len(found) == 0 {
		return "" // what cannot be read has just been told to be damaged
	}
	for _, s := range found {
		if s.Kind == mounts.KindTable {
			return s.String() // what was there before it may have left its own
		}
	}
	return found[0].String()
}
