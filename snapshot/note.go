package snapshot

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/linux/dm"
	"tidemark/witness"
)

// Note is what the filesystem on an origin was like at one time: what changes whenever somebody
// mounts, repairs or replays it.
type Note struct {
	// Still says that nobody had the filesystem mounted. Then all of it has to be as it was at the
	// next boot. Of one that is mounted, only what the mount itself has changed stays.
	Still bool `json:"still,omitempty"`
	witness.Witness
}

// volume is the filesystem that takes all of the origin, nil when there is none that keeps a trace.
func (n *Note) volume() *witness.Volume {
	if n == nil || len(n.Volumes) != 1 || n.Volumes[0].Off != 0 || n.Volumes[0].State == "" || n.Volumes[0].Kind == "btrfs" {
		return nil
	}
	return &n.Volumes[0]
}

func (n *Note) same(o *Note) bool { return reflect.DeepEqual(n, o) }

// since returns why it cannot be told that nobody has used the filesystem since was was noted, nil
// when it can.
func (n *Note) since(was *Note) error {
	v, w := n.volume(), was.volume()
	switch {
	case v == nil || w == nil || v.Kind != w.Kind:
		return errors.New("the filesystem on the disk is not the one that was there")
	case was.Still:
		if differ := witness.Compare(was.Witness, n.Witness); len(differ) > 0 {
			return fmt.Errorf("the disk was used without it: %s", strings.Join(differ, "; "))
		}
		return nil
	case v.Kind != "ext4":
		return fmt.Errorf("the power was cut while the disk was mounted, and %s does not tell whether anybody mounted it since", strings.ToUpper(v.Kind))
	case v.State != witness.NeedsRecovery:
		return errors.New("the disk was unmounted or used without that being noted: its journal is empty")
	}
	for _, name := range []string{"UUID", "mount count", "last mount", "last check"} {
		if a, b := field(w, name), field(v, name); a == "" || a != b {
			return fmt.Errorf("the disk was used without it: %s is %s, was %s", name, b, a)
		}
	}
	return nil
}

func field(v *witness.Volume, name string) string {
	for _, f := range v.Fields {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// look reads what the filesystem on a volume is like now. That nobody has it mounted is proved by an
// exclusive open in the middle, which a mount at that moment would fail at.
func (v *Volume) look(path string) (*Note, error) {
	before, err := v.read(path)
	if err != nil {
		return nil, err
	}
	d, err := block.Open(path, block.Options{Exclusive: true})
	still := err == nil
	if still {
		err = d.Close()
	}
	if err != nil && !errors.Is(err, unix.EBUSY) {
		return nil, err
	}
	now, err := v.read(path)
	if err != nil {
		return nil, err
	}
	now.Still = still && now.same(before)
	return now, nil
}

// read reads the filesystem past the page cache.
func (v *Volume) read(path string) (*Note, error) {
	d, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if d.Size() != v.Size {
		return nil, fmt.Errorf("it has %d bytes, and had %d", d.Size(), v.Size)
	}
	w, err := witness.Read(aligned{d}, d.Size())
	return &Note{Witness: w}, err
}

// note keeps what the filesystems of a persistent snapshot are like, of those that it keeps track of
// now, and reports whether that is news. The record is the caller's.
func (s *Snapshot) note() (changed bool, err error) {
	if !s.Persistent {
		return false, nil
	}
	ctl, err := dm.Open()
	if err != nil {
		return false, err
	}
	defer ctl.Close()
	for _, v := range s.Volumes {
		up, err := s.isUp(ctl, v)
		if err == nil && up && v.Dropped == "" {
			var n *Note
			if n, err = v.look(v.path()); err == nil && !n.same(v.Note) {
				v.Note, changed = n, true
			}
		}
		if err != nil {
			return changed, fmt.Errorf("%s: %w", v.Name, err)
		}
	}
	return changed, nil
}

// aligned reads any bytes of a device that is open for direct I/O.
type aligned struct{ d *block.Device }

func (a aligned) ReadAt(p []byte, off int64) (int, error) {
	const unit = 4096
	if off < 0 || off >= a.d.Size() {
		return 0, io.EOF
	}
	begin, end := off/unit*unit, min((off+int64(len(p))+unit-1)/unit*unit, a.d.Size())
	buf := block.AlignedBuffer(int(end - begin))
	if _, err := a.d.ReadAt(buf, begin); err != nil {
		return 0, err
	}
	if n := copy(p, buf[off-begin:]); n < len(p) {
		return n, io.EOF
	}
	return len(p), nil
}

// pieces reads a store where it lies on a device.
type pieces struct {
	r     io.ReaderAt
	store Store
}

func (r pieces) ReadAt(p []byte, off int64) (n int, err error) {
	if r.store.Kind == Block {
		return r.r.ReadAt(p, off)
	}
	for _, e := range r.store.Pieces {
		if off >= e.Len {
			off -= e.Len
			continue
		}
		take := min(int64(len(p)-n), e.Len-off)
		got, err := r.r.ReadAt(p[n:n+int(take)], e.Off+off)
		if n += got; err != nil || n == len(p) {
			return n, err
		}
		off = 0
	}
	return n, io.EOF
}
