// Package witness reads from a disk what changes whenever somebody mounts, repairs, replays or
// resizes what lies on it, so that two readings tell whether that happened between them.
//
// For most uses, [Read] a disk when nobody writes to it, keep the Witness (it is JSON), [Read]
// again later, and ask [Compare] for what differs, in words. Volume.State says whether a
// filesystem was left clean or needs its log replayed.
//
// These keep a trace of every mount that may write: ext2, ext3, ext4 (mount count and times in
// the superblock, the journal's superblock), XFS (the head of the log: an unmount writes a
// record; the headers of its groups: a repair writes them) and Btrfs (the generation). Also the
// partition table is read. What lies outside of such a filesystem may be written with no trace that
// can be found in a short time, or without a key: FAT, swap, LUKS, LVM, members of an array, what
// is not known, what has the signs of two filesystems, gaps. [Witness.Silent] names those ranges;
// to be safe they count as changed.
//
// Nobody can tell a program that wrote blocks of a filesystem that was not mounted, and left its
// first 128 KiB and its log as they were; nor a copy of the disk that was put back.
//
// The package opens nothing and writes nothing. It reads at most some MiB, whatever the disk holds.
// The reader must not be one through the page cache where the disk is mounted: that of a device
// is not what its filesystem wrote. Its functions may be called by several goroutines at once.
package witness

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"tidemark/extent"
)

// State is how a filesystem was left.
type State string

// The states. A volume that keeps no trace has none.
const (
	Clean         State = "clean"          // unmounted, or mounted read-only since; the log is empty
	NeedsRecovery State = "needs recovery" // mounted now, or it was at a power cut: the log is to be replayed
)

// Field is one thing that a mount, a repair or a replay changes, or that names the volume.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Volume is one thing that lies on a disk: its partition table, a filesystem, or a part of it that
// keeps no trace.
type Volume struct {
	Off int64 `json:"off"` // bytes on the disk
	Len int64 `json:"len"` // bytes that the witness vouches for; of a silent one, all of it
	// Kind is "gpt", "dos", "ext4" (also of ext2 and ext3), "xfs", "btrfs", or for a silent one what
	// it seems to be: "vfat", "swap", "luks", "lvm", "raid", "unknown", "ambiguous".
	Kind   string  `json:"kind"`
	Fields []Field `json:"fields,omitempty"`
	State  State   `json:"state,omitempty"`
	// Mounts is ext4's count of mounts that may write, since the last check.
	Mounts int `json:"mounts,omitempty"`
}

// String returns the volume as one line.
func (v Volume) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s at byte %d", v.Kind, v.Off)
	if v.State != "" {
		fmt.Fprintf(&b, " (%s)", v.State)
	}
	for _, f := range v.Fields {
		fmt.Fprintf(&b, ", %s %s", f.Name, f.Value)
	}
	return b.String()
}

func (v *Volume) add(name string, value any) {
	v.Fields = append(v.Fields, Field{name, fmt.Sprint(value)})
}

// traced reports whether the volume shows every mount that may write.
func (v Volume) traced() bool { return v.State != "" }

// Witness is what was read of one disk at one time.
type Witness struct {
	Size    int64    `json:"size"` // bytes
	Volumes []Volume `json:"volumes"`
}

// String returns one line a volume.
func (w Witness) String() string {
	var b strings.Builder
	for _, v := range w.Volumes {
		fmt.Fprintln(&b, v)
	}
	return b.String()
}

// Silent returns what may be written with no trace in a Witness: all but the filesystems that keep
// one. The partition table is part of it.
func (w Witness) Silent() extent.Set {
	rest := extent.NewSet(extent.Extent{Len: w.Size})
	for _, v := range w.Volumes {
		if v.traced() {
			rest = rest.Subtract(extent.NewSet(extent.Extent{Off: v.Off, Len: v.Len}))
		}
	}
	return rest
}

// Unclean returns the filesystems whose log is not empty.
func (w Witness) Unclean() []Volume {
	var found []Volume
	for _, v := range w.Volumes {
		if v.State == NeedsRecovery {
			found = append(found, v)
		}
	}
	return found
}

// Read reads the witness of a disk, or of what else begins at byte 0 of r and has size bytes. What
// is damaged or not known is silent, and no error; the error is that of r.
func Read(r io.ReaderAt, size int64) (Witness, error) {
	if size < 0 {
		return Witness{}, fmt.Errorf("witness: a size of %d bytes", size)
	}
	w := Witness{Size: size}
	whole, err := volumeAt(part{r, 0, size})
	if err != nil {
		return Witness{}, err
	}
	table, parts, err := tableOf(part{r, 0, size})
	if err != nil {
		return Witness{}, err
	}
	switch {
	case table == nil:
		w.Volumes = []Volume{whole}
		return w, nil
	case whole.Kind != unknown: // which of the two is in use cannot be told
		w.Volumes = []Volume{{Len: size, Kind: ambiguous}}
		return w, nil
	}
	w.Volumes = append(w.Volumes, *table)
	for _, p := range parts {
		v, err := volumeAt(p)
		if err != nil {
			return Witness{}, err
		}
		w.Volumes = append(w.Volumes, v)
	}
	return w, nil
}

// What a volume is when it is none that is known, or seems to be two.
const (
	unknown   = "unknown"
	ambiguous = "ambiguous"
)

// errNone says that what was looked for is not there, or is damaged.
var errNone = errors.New("not there")

// volumeAt reads what lies in a part of a disk.
func volumeAt(p part) (Volume, error) {
	silent := Volume{Off: p.off, Len: p.size, Kind: unknown}
	head, err := p.read(0, HeadSize)
	if errors.Is(err, errNone) {
		return silent, nil
	}
	if err != nil {
		return Volume{}, err
	}
	var found []Volume
	for _, read := range []func(part, []byte) (Volume, error){readExt, readXFS, readBtrfs} {
		v, err := read(p, head)
		switch {
		case err == nil:
			v.add("start", digest(head))
			found = append(found, v)
		case !errors.Is(err, errNone):
			return Volume{}, err
		}
	}
	kinds := opaque(head)
	switch {
	case len(found) == 1 && len(kinds) == 0 && found[0].Len > 0 && found[0].Len <= p.size:
		found[0].Off = p.off
		return found[0], nil
	case len(found)+len(kinds) > 1:
		silent.Kind = ambiguous
	case len(kinds) == 1:
		silent.Kind = kinds[0]
	}
	return silent, nil
}

// HeadSize is how many bytes of a volume's beginning are read and kept as a checksum: superblocks and
// the first descriptors of groups. That of Btrfs ends at 68 KiB.
const HeadSize = 128 << 10

func digest(p []byte) string {
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:16])
}

// part is a slice of a disk.
type part struct {
	r         io.ReaderAt
	off, size int64 // bytes
}

// read reads n bytes at off of the part, as far as the part goes, and the rest as zeros. The
// error wraps errNone when off is outside of the part.
func (p part) read(off int64, n int) ([]byte, error) {
	if off < 0 || off >= p.size {
		return nil, errNone
	}
	buf := make([]byte, n)
	take := min(int64(n), p.size-off)
	if got, err := p.r.ReadAt(buf[:take], p.off+off); int64(got) < take {
		return nil, fmt.Errorf("witness: read %d bytes at byte %d: %w", take, p.off+off, err)
	}
	return buf, nil
}
