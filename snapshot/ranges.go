package snapshot

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"tidemark/block"
	"tidemark/linux/dm"
	"tidemark/linux/mounts"
	"tidemark/words"
)

// Range is a part of a block device that nobody uses.
type Range struct {
	Path string `json:"path"`
	Off  int64  `json:"offset"` // bytes, whole sectors
	Len  int64  `json:"length"`
}

func (r Range) String() string { return fmt.Sprintf("%s:%d+%d", r.Path, r.Off, r.Len) }

// planRanges refuses ranges that are not of devices that nobody uses, or not inside them.
func (s *Snapshot) planRanges(v *Volume, ranges []Range, size int64) error {
	v.Store = Store{Kind: Block, Ranges: ranges}
	var names []string
	for i, r := range ranges {
		d, err := block.Open(r.Path, block.Options{Exclusive: true})
		if err != nil {
			return fmt.Errorf("%w: %w", ErrStore, err)
		}
		err = r.fits(d)
		for _, o := range ranges[:i] {
			if err == nil && r.overlaps(o) {
				err = fmt.Errorf("%w: %s and %s overlap", ErrStore, o, r)
			}
		}
		if err = errors.Join(err, d.Close()); err != nil {
			return err
		}
		v.Store.Size += r.Len
		names = append(names, r.String())
	}
	v.Store.Path = strings.Join(names, ",")
	if size > v.Store.Size {
		return fmt.Errorf("%w: %s has %s, and %s are asked for", ErrStore, v.Store.Path, words.Size(v.Store.Size), words.Size(size))
	}
	if size != 0 {
		v.Store.Size = size
	}
	v.Store.Size = v.Store.Size / s.Chunk * s.Chunk
	if v.Store.Size < 8*s.Chunk {
		return fmt.Errorf("%w: %s has %s, and a store needs 8 chunks of %s", ErrStore, v.Store.Path, words.Size(v.Store.Size), words.Size(s.Chunk))
	}
	return nil
}

// fits refuses a range that does not consist of whole sectors of its device, and a device that holds
// something.
func (r Range) fits(d *block.Device) error {
	sector := int64(d.SectorSize())
	if r.Off < 0 || r.Len <= 0 || r.Off%sector != 0 || r.Len%sector != 0 || r.Off > d.Size() || r.Len > d.Size()-r.Off {
		return fmt.Errorf("%w: %s: %s has %d bytes, and a range has whole sectors of %d", ErrStore, r, d.Path(), d.Size(), sector)
	}
	found, err := mounts.Probe(d, d.Size())
	if err == nil && len(found) > 0 {
		err = holds(d.Path(), found[0])
	}
	return err
}

func holds(path string, what fmt.Stringer) error {
	return fmt.Errorf("%w: %s holds %s, and would be overwritten: \"wipefs --all %s\" if nobody needs it", ErrStore, path, what, path)
}

// overlaps reports whether two ranges share a byte, where their devices can be told to be one.
func (r Range) overlaps(o Range) bool {
	a, aerr := mounts.DeviceOf(r.Path)
	b, berr := mounts.DeviceOf(o.Path)
	return (aerr != nil || berr != nil || a == b) && r.Off < o.Off+o.Len && o.Off < r.Off+r.Len
}

// shares reports whether two stores that are devices have a byte in common.
func (s Store) shares(o Store) bool {
	for _, a := range s.parts() {
		if slices.ContainsFunc(o.parts(), a.overlaps) {
			return true
		}
	}
	return false
}

// parts are what a store that is a device consists of, in its order.
func (s Store) parts() []Range {
	if len(s.Ranges) > 0 {
		return s.Ranges
	}
	return []Range{{Path: s.Path, Len: s.Size}}
}

// table is that of a store that is a device.
func (s Store) table() (table []dm.Target) {
	at := int64(0)
	for _, r := range s.parts() {
		n := min(r.Len, s.Size-at)
		if n <= 0 {
			break
		}
		table = append(table, dm.Target{
			Start: uint64(at / dm.SectorSize), Len: uint64(n / dm.SectorSize), Type: "linear", Params: fmt.Sprintf("%s %d", r.Path, r.Off/dm.SectorSize),
		})
		at += n
	}
	return table
}
