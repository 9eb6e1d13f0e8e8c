package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"tidemark/extent"
	"tidemark/linux/dm"
	"tidemark/linux/dmsnap"
	"tidemark/linux/fiemap"
	"tidemark/linux/mounts"
	"tidemark/words"
)

// How a store inside grows: the blocks that its file gets after the instant may have been another
// file's then, and what is written to them passes below the origin, so that nobody would copy them.
// But what was nobody's at the instant the image need not show. Which blocks those are the kernel
// tells, of the filesystem on the image (FS_IOC_GETFSMAP). The image reads as zeros there before the
// store begins to use them. Others that the file got stay unused in it, and show what they held.

// growInside is grow of a store that is inside.
func (s *Snapshot) growInside(ctx context.Context, ctl *dm.Control, v *Volume, size int64) error {
	if s.Writable {
		return fmt.Errorf("%w: what is free on an image that is written to may be in use there any time", ErrStore)
	}
	if others, err := s.others(ctl, v); err != nil || others {
		return errors.Join(err, fmt.Errorf("%w: another snapshot of %s may show what is in the blocks that it would get: destroy that one first", ErrStore, v.Name))
	}
	u, err := s.usage(ctl, v)
	if err != nil || u.State != dmsnap.Valid {
		return errors.Join(err, fmt.Errorf("%w: the snapshot is lost", ErrStore))
	}
	if u.Total < v.Store.Size { // a growth that was cut off has noted what the kernel does not use yet
		if err := s.useMore(ctx, ctl, v); err != nil || size <= v.Store.Size {
			return err
		}
	}
	if size <= v.Store.Size {
		return fmt.Errorf("%w: it has %s already", ErrStore, words.Size(v.Store.Size))
	}
	path, _, err := v.place(ctl)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if ours, err := v.Store.is(f); !ours {
		return errors.Join(err, fmt.Errorf("%w: %s is another file by now", ErrStore, path))
	}
	before, had := v.Store.Size, int64(0)
	for had < v.Store.Size && v.Store.Size < size && err == nil {
		had = v.Store.Size
		if err = enlarge(f, path, size-had+2*s.Chunk); err == nil { // the ends are no whole chunks
			err = s.takeFree(v, f)
		}
	}
	if v.Store.Size > before {
		if werr := s.write(); werr != nil { // before anything lies there
			return errors.Join(err, werr)
		}
		if uerr := s.useMore(ctx, ctl, v); uerr != nil {
			return errors.Join(err, uerr)
		}
	}
	if err == nil && v.Store.Size < size {
		err = fmt.Errorf("%w: it has %s now; the other blocks that its file could get were a file's at the instant, or lie in pieces smaller than a chunk: a store in a file elsewhere (--store) grows as far as there is room there", ErrNoRoom, words.Size(v.Store.Size))
	}
	return err
}

// enlarge gives the file of a store more blocks. Until it is immutable again, which repair sees to, too,
// nothing but its name keeps others from changing it.
func enlarge(f *os.File, path string, more int64) (err error) {
	if err := fiemap.SetImmutable(f, false); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fiemap.SetImmutable(f, true), f.Sync()) }()
	w, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	info, err := w.Stat()
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(w.Fd()), 0, info.Size(), more)
	if errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("%w: %s: %w: make room", ErrNoRoom, path, err)
	}
	if err != nil {
		return fmt.Errorf("allocate %s: %w", path, err)
	}
	return w.Sync()
}

// takeFree adds to a store, in the record, the whole chunks of its file that were nobody's at the instant.
func (s *Snapshot) takeFree(v *Volume, f *os.File) error {
	extents, err := fiemap.Of(f)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrStore, err)
	}
	free, err := s.freeThen(v)
	if err != nil {
		return err
	}
	more := onDevice(extents).Subtract(v.Inside()).Intersect(free)
	if s.Persistent { // a rollback would write there what the store has of them
		copied, err := s.copiedChunks(v)
		if err != nil {
			return err
		}
		more = more.Subtract(copied)
	}
	for _, e := range more.Extents() {
		begin, end := (e.Off+s.Chunk-1)/s.Chunk*s.Chunk, e.End()/s.Chunk*s.Chunk
		if end > begin {
			piece := extent.Extent{Off: begin, Len: end - begin}
			v.Store.Pieces = append(v.Store.Pieces, piece)
			v.Store.Extents = v.Inside().Union(extent.NewSet(piece)).Extents()
			v.Store.Size += piece.Len
		}
	}
	return nil
}

// freeThen returns the bytes of a volume that belonged to nobody at the instant.
func (s *Snapshot) freeThen(v *Volume) (extent.Set, error) {
	f, err := filesystem(v.Dev)
	if err != nil {
		return extent.Set{}, err
	}
	flags := []string{"noload"}
	if f.Type == "xfs" {
		flags = []string{"norecovery", "nouuid"}
	}
	top, err := mounts.Detached(f.Type, s.Image(v), flags...)
	if err != nil {
		return extent.Set{}, err
	}
	defer top.Close()
	free, err := fiemap.Free(top)
	return onDevice(free), err
}

// onDevice is where extents lie.
func onDevice(extents []fiemap.Extent) extent.Set {
	var on []extent.Extent
	for _, e := range extents {
		on = append(on, extent.Extent{Off: e.Physical, Len: e.Len})
	}
	return extent.NewSet(on...)
}

// useMore has the image read as zeros where the store lies, and then the store use all that the record
// says, which counts as changed: from now on all views read it as zeros.
func (s *Snapshot) useMore(ctx context.Context, ctl *dm.Control, v *Volume) error {
	for _, d := range []struct {
		name  string
		table []dm.Target
	}{{s.image(v), s.shows(v)}, {s.cow(v), v.pieces()}} {
		info, err := ctl.Info(d.name)
		if err == nil {
			err = swap(ctx, ctl, info, d.table)
		}
		if err != nil {
			return err
		}
	}
	return s.tell(ctx, ctl, v)
}

// guard makes the files of stores immutable again, which a growth that was cut off has left open. Where
// the filesystem is not mounted there is nothing to be changed.
func (s *Snapshot) guard(ctl *dm.Control) error {
	for _, v := range s.Volumes {
		if v.Store.Kind != Inside {
			continue
		}
		path, _, err := v.place(ctl)
		if err != nil {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		ours, err := v.Store.is(f)
		if err == nil && ours {
			var kept bool
			if kept, err = fiemap.Immutable(f); err == nil && !kept {
				err = fiemap.SetImmutable(f, true)
			}
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}
