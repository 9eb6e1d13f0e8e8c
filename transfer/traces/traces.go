// Package traces finds the places of a copy that show whether somebody has used it: mounted
// its filesystem, made another, or partitioned the disk.
//
// For most uses, call [Find] with what the copy holds, and compare those places with their
// checksums. The package reads superblocks and partition tables, and never fails for what
// makes no sense: that has no traces. Functions may be called by several goroutines at
// once.
package traces

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"tidemark/extent"
	"tidemark/format/gpt"
	"tidemark/linux/mounts"
)

// A Trace is a place of a target that shows whether it was used.
type Trace struct {
	extent.Extent
	What string // "its ext superblock"
}

// Traces are the places of one target.
type Traces struct {
	// Sure ones change when a filesystem is mounted read-write or made, or a disk is
	// partitioned.
	Sure []Trace
	// Vague ones hold what cannot be looked into: an encrypted volume, a volume group. Any
	// change there may come from use.
	Vague []Trace

	block int64
	known bool
}

// marking are the filesystems whose superblock, or boot sector, is written when they are
// mounted read-write, and only then.
var marking = []string{"ext", "btrfs", "vfat", "exfat", "nilfs2", "jfs", "bcachefs"}

// Find finds the traces on the first size bytes of a target, by what it holds now: what was
// put there later is told by itself. blockSize is that of the checksums, in bytes; known
// says that the last run told how it left the target.
func Find(r io.ReaderAt, size, blockSize int64, known bool) (Traces, error) {
	t := Traces{block: blockSize, known: known}
	if err := t.add(r, extent.Extent{Len: size}, "its"); err != nil {
		return t, err
	}
	parts, err := Partitions(r, size)
	for _, p := range parts {
		if err := t.add(r, p.Extent, p.What); err != nil {
			return t, err
		}
	}
	return t, err
}

// Partitions returns the partitions of the first size bytes of a disk, those of an MBR with
// its extended ones; none where the table is damaged. What names each: "partition 1's".
func Partitions(r io.ReaderAt, size int64) ([]Trace, error) {
	found, err := mounts.Probe(r, size)
	if err != nil {
		return nil, err
	}
	var all []Trace
	for _, s := range found {
		if s.Kind == mounts.KindTable {
			parts, err := partitions(r, s.Off, size)
			if err != nil {
				return nil, err
			}
			all = append(all, parts...)
		}
	}
	return all, nil
}

// Set returns the places of all traces.
func Set(all []Trace) extent.Set {
	var exts []extent.Extent
	for _, t := range all {
		exts = append(exts, t.Extent)
	}
	return extent.NewSet(exts...)
}

// Changed returns the first of the traces that bad has a part of.
func Changed(all []Trace, bad extent.Set) (Trace, bool) {
	for _, t := range all {
		if !bad.Intersect(extent.NewSet(t.Extent)).Empty() {
			return t, true
		}
	}
	return Trace{}, false
}

// add adds the traces of a whole target, or of one of its partitions.
func (t *Traces) add(r io.ReaderAt, within extent.Extent, whose string) error {
	part := io.NewSectionReader(r, within.Off, within.Len)
	found, err := mounts.Probe(part, within.Len)
	if err != nil {
		return err
	}
	for _, s := range found {
		what := whose + " " + s.Name
		place := Trace{extent.Extent{Off: within.Off + s.Off, Len: 1}, what}
		switch {
		case s.Kind == mounts.KindTable:
			place.What = whose + " partition table"
			t.Sure = append(t.Sure, place)
			if s.Name == "gpt" {
				both := extent.Extent{Off: within.Off, Len: gptRoom}
				t.Sure = append(t.Sure, Trace{both.Intersect(within), place.What})
				both.Off = within.End() - gptRoom
				t.Sure = append(t.Sure, Trace{both.Intersect(within), place.What})
			}
		case s.Kind == mounts.KindFilesystem && slices.Contains(marking, s.Name):
			place.What += " superblock"
			t.Sure = append(t.Sure, place)
		case s.Name == "xfs":
			if err := t.addXFS(part, within, place); err != nil {
				return err
			}
		case s.Kind == mounts.KindSwap:
			t.Sure = append(t.Sure, place)
		default:
			t.Sure, t.Vague = append(t.Sure, place), append(t.Vague, Trace{within, what})
		}
	}
	return nil
}

// addXFS adds an XFS. To mount it read-only writes to its superblock and its log, and
// nowhere else; to use it changes the rest. Where nothing is known of how the target was
// left, so that the rest may be damaged, superblock and log have to do.
func (t *Traces) addXFS(r io.ReaderAt, within extent.Extent, super Trace) error {
	sb, err := mounts.ReadSuperblock(r, within.Len)
	if err != nil {
		return err
	}
	log := sb.Log
	log.Off += within.Off
	own := []extent.Extent{super.Extent, log.Intersect(within)}
	if !t.known {
		t.Sure = append(t.Sure, super, Trace{own[1], super.What + " log"})
		return nil
	}
	rest := extent.NewSet(within).Subtract(extent.NewSet(own...).Align(t.block, within.End()))
	for _, e := range rest.Extents() {
		t.Vague = append(t.Vague, Trace{e, super.What})
	}
	return nil
}

const (
	// gptRoom is what a GPT of 128 entries takes at either end of a disk at least, in bytes.
	gptRoom = 17 << 10
	// maxParts bounds the partitions that are looked at.
	maxParts = 256
)

// partitions returns the partitions of a table whose signature stands at byte at of a disk:
// those of a GPT, or of an MBR with its extended ones. A damaged table has none.
func partitions(r io.ReaderAt, at, size int64) (parts []Trace, err error) {
	add := func(start, length int64) {
		if start > 0 && length > 0 && length <= size-start && len(parts) < maxParts {
			parts = append(parts, Trace{extent.Extent{Off: start, Len: length}, fmt.Sprintf("partition %d's", len(parts)+1)})
		}
	}
	if at == 510 {
		err := mbrPartitions(r, size, add)
		return parts, err
	}
	table, err := gpt.Read(r)
	if errors.Is(err, gpt.ErrNone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, p := range table.Partitions {
		add(p.Start, p.Size)
	}
	return parts, nil
}

// The partition types of an MBR that hold other partitions.
var extendedTypes = []byte{0x05, 0x0f, 0x85}

// mbrPartitions follows an MBR and the chain of its extended partition. Sectors are of 512
// bytes: on other disks nothing is found where they point to.
func mbrPartitions(r io.ReaderAt, size int64, add func(start, length int64)) error {
	const sector, entry = 512, 446
	extended, base := int64(0), int64(0) // of the extended partition, and of the record in it, bytes
	head := make([]byte, sector)
	for range maxParts {
		if _, err := r.ReadAt(head, base); err != nil {
			return err
		}
		next := int64(0)
		for i := range 4 {
			e := head[entry+16*i:][:16]
			start, length := int64(binary.LittleEndian.Uint32(e[8:]))*sector, int64(binary.LittleEndian.Uint32(e[12:]))*sector
			switch {
			case slices.Contains(extendedTypes, e[4]):
				next = extended + start
			case e[4] != 0 && e[4] != 0xee:
				add(base+start, length)
			}
		}
		if next == 0 || next > size-sector {
			break
		}
		if base = next; extended == 0 {
			extended = next
		}
	}
	return nil
}
