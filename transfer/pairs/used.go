package pairs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/mounts"
	"tidemark/transfer/mirror"
	"tidemark/transfer/transaction"
)

// trace is a place of a target that shows whether it was used.
type trace struct {
	extent.Extent
	what string // "its ext superblock"
}

// traces are the places of one target.
type traces struct {
	block int64 // of the checksums, bytes
	// known says that the last run told how it left the target.
	known bool
	// sure ones change when a filesystem is mounted read-write or made, or a disk is
	// partitioned.
	sure []trace
	// vague ones hold what cannot be looked into: an encrypted volume, a volume group. Any
	// change there may come from use.
	vague []trace
}

// marking are the filesystems whose superblock, or boot sector, is written when they are
// mounted read-write, and only then.
var marking = []string{"ext", "btrfs", "vfat", "exfat", "nilfs2", "jfs", "bcachefs"}

// find finds the traces on the first size bytes of a target, by what it holds now: what was
// put there later is told by itself.
func (t *traces) find(r io.ReaderAt, size int64) error {
	tables, err := t.add(r, extent.Extent{Len: size}, "its")
	for _, at := range tables {
		parts, perr := partitions(r, at, size)
		if perr != nil {
			return perr
		}
		for _, p := range parts {
			if _, err := t.add(r, p.Extent, p.what); err != nil {
				return err
			}
		}
	}
	return err
}

// add adds the traces of a whole target, or of one of its partitions, and returns where
// there is a partition table.
func (t *traces) add(r io.ReaderAt, within extent.Extent, whose string) (tables []int64, err error) {
	part := io.NewSectionReader(r, within.Off, within.Len)
	found, err := mounts.Probe(part, within.Len)
	if err != nil {
		return nil, err
	}
	for _, s := range found {
		what := whose + " " + s.Name
		place := trace{extent.Extent{Off: within.Off + s.Off, Len: 1}, what}
		switch {
		case s.Kind == mounts.KindTable:
			tables = append(tables, s.Off)
			place.what = whose + " partition table"
			t.sure = append(t.sure, place)
			if s.Name == "gpt" {
				both := extent.Extent{Off: within.Off, Len: gptRoom}
				t.sure = append(t.sure, trace{both.Intersect(within), place.what})
				both.Off = within.End() - gptRoom
				t.sure = append(t.sure, trace{both.Intersect(within), place.what})
			}
		case s.Kind == mounts.KindFilesystem && slices.Contains(marking, s.Name):
			place.what += " superblock"
			t.sure = append(t.sure, place)
		case s.Name == "xfs":
			if err := t.addXFS(part, within, place); err != nil {
				return nil, err
			}
		case s.Kind == mounts.KindSwap:
			t.sure = append(t.sure, place)
		default:
			t.sure, t.vague = append(t.sure, place), append(t.vague, trace{within, what})
		}
	}
	return tables, nil
}

// addXFS adds an XFS. To mount it read-only writes to its superblock and its log, and
// nowhere else; to use it changes the rest. Where nothing is known of how the target was
// left, so that the rest may be damaged, superblock and log have to do.
func (t *traces) addXFS(r io.ReaderAt, within extent.Extent, super trace) error {
	log, err := xfsLog(r)
	if err != nil {
		return err
	}
	log.Off += within.Off
	own := []extent.Extent{super.Extent, log.Intersect(within)}
	if !t.known {
		t.sure = append(t.sure, super, trace{own[1], super.what + " log"})
		return nil
	}
	rest := extent.NewSet(within).Subtract(extent.NewSet(own...).Align(t.block, within.End()))
	for _, e := range rest.Extents() {
		t.vague = append(t.vague, trace{e, super.what})
	}
	return nil
}

// xfsLog returns where the log of an XFS lies, when it lies in it (xfs_format.h, struct
// xfs_dsb).
func xfsLog(r io.ReaderAt) (extent.Extent, error) {
	sb := make([]byte, 512)
	if _, err := r.ReadAt(sb, 0); err != nil {
		return extent.Extent{}, err
	}
	size, start := int64(binary.BigEndian.Uint32(sb[4:])), binary.BigEndian.Uint64(sb[48:])
	groupBlocks, blocks := int64(binary.BigEndian.Uint32(sb[84:])), int64(binary.BigEndian.Uint32(sb[96:]))
	groupBits := sb[124] & 31
	group, in := int64(start>>groupBits), int64(start&(1<<groupBits-1))
	if start == 0 || size > 64<<10 || group > 1<<20 {
		return extent.Extent{}, nil // external, or nonsense
	}
	return extent.Extent{Off: (group*groupBlocks + in) * size, Len: blocks * size}, nil
}

const (
	// gptRoom is what a GPT of 128 entries takes at either end of a disk at least, in bytes.
	gptRoom = 17 << 10
	// maxParts bounds the partitions that are looked at.
	maxParts = 256
)

// partitions returns the partitions of a table whose signature stands at byte at of a disk:
// those of a GPT, or of an MBR with its extended ones. A damaged table has none.
func partitions(r io.ReaderAt, at, size int64) (parts []trace, err error) {
	head := make([]byte, 512)
	if _, err := r.ReadAt(head, at/512*512); err != nil {
		return nil, err
	}
	add := func(start, length int64) {
		if e := (extent.Extent{Off: start, Len: length}); start > 0 && length > 0 && e.End() <= size {
			parts = append(parts, trace{e, fmt.Sprintf("partition %d's", len(parts)+1)})
		}
	}
	switch {
	case string(head[:8]) == "EFI PART" && (at == 512 || at == 4096):
		sector, each := at, int64(binary.LittleEndian.Uint32(head[84:]))
		count := min(binary.LittleEndian.Uint32(head[80:]), maxParts)
		if each < 128 || each > 4096 {
			return nil, nil
		}
		entries := make([]byte, int64(count)*each)
		first := int64(binary.LittleEndian.Uint64(head[72:]))
		if first < 0 || first > size/sector || first*sector+int64(len(entries)) > size {
			return nil, nil
		}
		if _, err := r.ReadAt(entries, first*sector); err != nil {
			return nil, err
		}
		for e := range slices.Chunk(entries, int(each)) {
			from, to := int64(binary.LittleEndian.Uint64(e[32:])), int64(binary.LittleEndian.Uint64(e[40:]))
			if from > 0 && to >= from && to < size/sector {
				add(from*sector, (to-from+1)*sector)
			}
		}
	case at == 510:
		return mbrPartitions(r, head, size, add, &parts)
	}
	return parts, nil
}

// The partition types of an MBR that hold other partitions.
var extendedTypes = []byte{0x05, 0x0f, 0x85}

// mbrPartitions follows an MBR and the chain of its extended partition. Sectors are of 512
// bytes: on other disks nothing is found where they point to.
func mbrPartitions(r io.ReaderAt, head []byte, size int64, add func(start, length int64), parts *[]trace) ([]trace, error) {
	const sector, entry = 512, 446
	extended, base := int64(0), int64(0) // of the extended partition, and of the record in it, bytes
	for range maxParts {
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
		if _, err := r.ReadAt(head, base); err != nil {
			return nil, err
		}
	}
	return *parts, nil
}

// refuseUsedSince protects a mirror of the source that somebody has used since the last
// run: a filesystem was mounted read-write or made, or the disk was partitioned. A run
// would revert that. A target that looks as it was left is not read. Other changes are
// found, and repaired, by the run. Of a first copy that was stopped in good order what was
// copied is looked at; of one that was cut off that may be torn by itself.
func (t *target) refuseUsedSince() error {
	why, err := t.suspect()
	told := transaction.Stamp(t.state.Target).Telling()
	if why == "" || err != nil || t.pending || t.is != ours && !(t.is == unfinished && told) {
		return err
	}
	d, err := block.Open(t.path, block.Options{})
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	defer d.Close()
	disk := transaction.Disk{Device: d}
	transaction.Reread(disk)
	found := traces{block: t.state.BlockSize, known: told}
	if err := found.find(d, min(d.Size(), t.state.Size)); err != nil {
		return fmt.Errorf("target: %s: %w", t.path, err)
	}
	t.vague = nil
	if found.known { // else the last run was cut off, or verify found damage
		t.vague = found.vague
	}
	sure := placesOf(found.sure)
	if !t.state.Complete {
		sure = sure.Clip(extent.Extent{Len: t.state.Copied})
	}
	bad, err := mirror.Differ(t.folder, t.state, disk, sure)
	if err == nil && bad.Empty() || cannotBeUsed(err) || errors.Is(err, fs.ErrNotExist) {
		return nil // of sums that are damaged or missing, opening it tells
	}
	if err != nil {
		return fmt.Errorf("target: %s: %w", t.path, err)
	}
	return t.usedSince(found.sure, bad)
}

func placesOf(all []trace) extent.Set {
	var exts []extent.Extent
	for _, t := range all {
		exts = append(exts, t.Extent)
	}
	return extent.NewSet(exts...)
}

// usedSince names the first trace that was changed, nil if none was.
func (t *target) usedSince(of []trace, bad extent.Set) error {
	after := "the copy of " + t.state.Time.Local().Format(timeFormat)
	if !t.state.Complete {
		after = "its first copy was stopped"
	}
	for _, tr := range of {
		if !bad.Intersect(extent.NewSet(tr.Extent)).Empty() {
			return t.refused(ErrUsedSince, "after %s %s changed, and a run would revert that", after, tr.what)
		}
	}
	return nil
}

// guard refuses what a check of all of the target has found in a place that cannot be
// looked into.
func (t *target) guard(o Options) func(bad extent.Set) error {
	if o.Overwrite || len(t.vague) == 0 {
		return nil
	}
	return func(bad extent.Set) error { return t.usedSince(t.vague, bad) }
}
