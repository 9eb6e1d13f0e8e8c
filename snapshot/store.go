package snapshot

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/atomicfile"
	"tidemark/linux/dm"
	"tidemark/linux/fiemap"
	"tidemark/linux/loop"
	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
	"tidemark/words"
)

// filesystem returns the mounted filesystem that lies on an origin, and on nothing else.
func filesystem(dev sysfs.Dev) (f mounts.Filesystem, err error) {
	table, err := mounts.Read()
	if err != nil {
		return f, err
	}
	all, err := table.On(dev)
	if err != nil {
		return f, err
	}
	for _, f := range all {
		if len(f.Members) == 1 && f.Members[0] == dev {
			return f, nil
		}
	}
	return f, fmt.Errorf("%w: no filesystem on it is mounted: give another place for the store", ErrStore)
}

// top returns the path of the topmost folder of a filesystem: the store's file lies there, so that
// it is found again however the filesystem is mounted by then.
func top(f mounts.Filesystem) (string, error) {
	for _, m := range f.Mounts {
		var st unix.Stat_t
		if m.Root == "/" && unix.Stat(m.Path(), &st) == nil && sysfs.DevOf(st.Dev) == f.Dev {
			return m.Path(), nil
		}
	}
	return "", fmt.Errorf("%w: %s: no mount shows all of it, or another one covers that: mount all of it elsewhere, or give another place for the store", ErrStore, f)
}

// plan finds out where the store of a volume will be, and how large. It makes nothing.
func (s *Snapshot) plan(v *Volume, d Device, reserve int64) error {
	switch {
	case len(d.Ranges) > 0:
		return s.planRanges(v, d.Ranges, d.Size)
	case d.Store == Zram:
		return s.planZram(v, d.Size)
	case d.Store == "":
		return s.planInside(v, "", d.Size, reserve)
	}
	info, err := os.Stat(d.Store)
	if err == nil && info.Mode().Type() == os.ModeDevice {
		v.Store = Store{Kind: Block, Path: d.Store}
		return s.planDevice(v, d.Size)
	}
	path, err := filepath.Abs(d.Store)
	if err == nil && strings.HasPrefix(path, "/dev/") && !strings.HasPrefix(path, "/dev/shm/") {
		err = fmt.Errorf("%w: there is no device %s", ErrStore, path)
	}
	if err == nil && d.Replace {
		err = replaceable(path)
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if unix.Stat(filepath.Dir(path), &st) == nil && sysfs.DevOf(st.Dev) == v.Dev {
		err = s.planInside(v, path, d.Size, reserve)
	} else {
		v.Store = Store{Kind: File, Path: path}
		err = s.room(v, filepath.Dir(path), d.Size, reserve)
	}
	v.Store.replaces = d.Replace
	return err
}

// planInside is plan of a store on the origin's own filesystem: at path, or where it is by itself.
func (s *Snapshot) planInside(v *Volume, path string, size, reserve int64) error {
	f, err := filesystem(v.Dev)
	switch {
	case err != nil:
		return err
	case f.Type != "ext4" && f.Type != "xfs":
		return fmt.Errorf("%w: %s may move the blocks of a file: give another place for the store", ErrStore, f)
	case f.ReadOnly:
		return fmt.Errorf("%w: %s is mounted read-only: give another place for the store", ErrStore, f)
	}
	dir, err := top(f)
	if err != nil {
		return err
	}
	below := ".tidemark-" + s.Name
	if path != "" {
		folder, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err == nil {
			below, err = filepath.Rel(dir, filepath.Join(folder, filepath.Base(path)))
		}
		if err != nil || !filepath.IsLocal(below) {
			return errors.Join(err, fmt.Errorf("%w: %s: give its path below %s, where all of %s is mounted", ErrStore, path, dir, f))
		}
	}
	v.Store = Store{Kind: Inside, Path: filepath.Join(dir, below), Below: below}
	return s.room(v, filepath.Dir(v.Store.Path), size, reserve)
}

// room sets the size of a store that is a file in a folder.
func (s *Snapshot) room(v *Volume, dir string, size, reserve int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if reserve == 0 {
		reserve = min(DefaultReserve, int64(st.Blocks)*st.Bsize/20)
	}
	free := int64(st.Bavail)*st.Bsize - reserve
	least := min(max(MinStore, 8*s.Chunk), v.Size+8*s.Chunk)
	v.Store.Size = size
	if size == 0 {
		share := v.share
		if s.Transient { // it is gone before anybody misses the room
			share.size = max(share.size, min(free/2, v.Size))
		}
		v.Store.Size, v.sized = max(min(share.size, free/s.Chunk*s.Chunk), least), share.why
		switch {
		case v.Store.Size < share.size:
			v.sized = "which is what there is room for"
		case v.Store.Size > share.size:
			v.sized = "the least"
		}
	}
	v.Store.Size = (v.Store.Size + s.Chunk - 1) / s.Chunk * s.Chunk
	if v.Store.Size < 8*s.Chunk {
		return fmt.Errorf("%w: %s are room for less than 8 chunks of %s: give a larger size", ErrStore, words.Size(v.Store.Size), words.Size(s.Chunk))
	}
	if v.Store.Size > free {
		return fmt.Errorf("%w: %s has %s free, %s are to stay so, and the store needs %s: make room, or give a smaller size or another place",
			ErrNoRoom, dir, words.Size(free+reserve), words.Size(reserve), words.Size(v.Store.Size))
	}
	return nil
}

// planDevice refuses a device that is in use or holds something.
func (s *Snapshot) planDevice(v *Volume, size int64) error {
	d, err := block.Open(v.Store.Path, block.Options{Exclusive: true})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrStore, err)
	}
	defer d.Close()
	found, err := mounts.Probe(d, d.Size())
	switch {
	case err != nil:
		return err
	case len(found) > 0:
		return holds(v.Store.Path, found[0])
	case size > d.Size() || d.Size() < 8*s.Chunk || size != 0 && size < 8*s.Chunk:
		return fmt.Errorf("%w: %s has %s, and a store needs 8 chunks of %s", ErrStore, v.Store.Path, words.Size(d.Size()), words.Size(s.Chunk))
	}
	if v.Store.Size = size; size == 0 {
		v.Store.Size = d.Size()
	}
	v.Store.Size = v.Store.Size / s.Chunk * s.Chunk
	return nil
}

// apart refuses a store that lies on a device of which a snapshot is taken, now or already, and is
// not its own inside: writes to it would have to wait for themselves. It refuses a device that is
// the store of another volume of the request, too.
func (s *Snapshot) apart(v *Volume, list []*Snapshot) error {
	if v.Store.Kind == Inside || v.Store.Kind == Zram {
		return nil
	}
	table, err := mounts.Read()
	if err != nil {
		return err
	}
	on, err := below(table, v.Store)
	if err != nil {
		return err
	}
	origins := slices.Clone(s.Volumes)
	for _, o := range list {
		if !o.Incremental && !o.ofLVM() { // that of LVM lies in the group
			origins = append(origins, o.Volumes...)
		}
	}
	for _, o := range origins {
		above, err := table.Above(o.Dev)
		if err != nil {
			return err
		}
		for _, d := range on {
			if d == o.Dev || above[d] {
				return fmt.Errorf("%w: %s lies on %s, of which a snapshot is taken too: without a place given, the store of %s is there", ErrStore, v.Store.Path, o.Name, o.Name)
			}
		}
	}
	for _, o := range s.Volumes {
		if o == v || o.Store.Kind != Block || v.Store.Kind != Block {
			continue
		}
		if v.Store.shares(o.Store) {
			return fmt.Errorf("%w: %s is that of %s, too", ErrStore, v.Store.Path, o.Name)
		}
	}
	return nil
}

// below returns the devices that a store lies on: itself, or those of the filesystems of its file.
func below(table *mounts.Table, s Store) (on []sysfs.Dev, err error) {
	if s.Kind == Block {
		for _, r := range s.parts() {
			dev, derr := mounts.DeviceOf(r.Path)
			on, err = append(on, dev), errors.Join(err, derr)
		}
		return on, err
	}
	through, err := table.Through(s.Path)
	for _, f := range through {
		on = append(on, f.Members...)
	}
	return on, err
}

// makeStore makes the file of a store, and returns the table of what the store consists of.
func (s *Snapshot) makeStore(v *Volume) ([]dm.Target, *loop.Device, error) {
	switch v.Store.Kind {
	case Zram:
		if err := s.makeZram(v); err != nil {
			return nil, nil, err
		}
		return v.Store.table(), nil, nil
	case Block:
		return v.Store.table(), nil, nil
	case File:
		f, err := s.allocate(v)
		if err != nil {
			return nil, nil, err
		}
		defer f.Close()
		d, err := loop.Attach(f, loop.Options{Name: filepath.Base(v.Store.Path), Write: true})
		if err != nil {
			return nil, nil, err
		}
		return whole(d.Path, v.Store.Size), d, nil
	}
	f, err := s.allocate(v)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	table, err := v.inside(f, s.Chunk)
	return table, nil, err
}

// none is the kind of a store that did not come to be.
const none = "none"

// whole is the table of a store that is a device.
func whole(path string, size int64) []dm.Target {
	return []dm.Target{{Len: uint64(size / dm.SectorSize), Type: "linear", Params: path + " 0"}}
}

// allocate makes the file of a store with all its blocks. The record knows the file before it has
// any, so that a crash leaves none that is not known again.
func (s *Snapshot) allocate(v *Volume) (*os.File, error) {
	path, size := v.Store.Path, v.Store.Size
	if v.Store.replaces {
		if err := replaceable(path); err != nil {
			return nil, err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrExist) {
		v.Store.Kind = none // it is somebody else's
	}
	if err != nil {
		return nil, err
	}
	if err = v.Store.identify(f); err == nil {
		err = s.write()
	}
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	}
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: %s: %w", ErrNoRoom, path, err)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return f, nil
}

// inside makes the file of a store immutable, and returns the table of the whole chunks of the
// origin that its extents hold.
func (v *Volume) inside(f *os.File, chunk int64) (table []dm.Target, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if sysfs.DevOf(st.Dev) != v.Dev {
		return nil, fmt.Errorf("%w: %s lies on %s, and not on %s itself", ErrStore, f.Name(), sysfs.DevOf(st.Dev), v.Name)
	}
	if err := fiemap.SetImmutable(f, true); err != nil {
		return nil, err
	}
	extents, err := fiemap.Of(f)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStore, err)
	}
	var held []extent.Extent
	planned := v.Store.Size
	v.Store.Pieces, v.Store.Size = nil, 0
	for _, e := range extents {
		held = append(held, extent.Extent{Off: e.Physical, Len: e.Len})
		begin, end := (e.Physical+chunk-1)/chunk*chunk, (e.Physical+e.Len)/chunk*chunk
		if end > begin {
			v.Store.Pieces = append(v.Store.Pieces, extent.Extent{Off: begin, Len: end - begin})
			v.Store.Size += end - begin
		}
	}
	if v.Store.Size < min(MinStore, planned)/2 {
		return nil, fmt.Errorf("%w: %s lies in %d pieces, of which only %s are whole chunks of %s: give smaller chunks, or another place", ErrStore, f.Name(), len(extents), words.Size(v.Store.Size), words.Size(chunk))
	}
	v.Store.Extents = extent.NewSet(held...).Extents()
	return v.pieces(), nil
}

// pieces is the table of a store that is inside.
func (v *Volume) pieces() (table []dm.Target) {
	at := uint64(0)
	for _, e := range v.Store.Pieces {
		n := uint64(e.Len / dm.SectorSize)
		table = append(table, dm.Target{Start: at, Len: n, Type: "linear", Params: fmt.Sprintf("/dev/mapper/%s %d", v.real(), e.Off/dm.SectorSize)})
		at += n
	}
	return table
}

// remove removes the file of a store. That a filesystem is not mounted is an error, for its file
// cannot be removed then.
func (v *Volume) remove(ctl *dm.Control) error {
	if v.Store.Kind == Block || v.ofLVM() || v.Store.Kind == none {
		return nil
	}
	if v.Store.Kind == Zram {
		return v.removeZram()
	}
	path, certain, err := v.place(ctl)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ours := false
	if err == nil {
		defer f.Close()
		if ours, err = v.Store.is(f); err != nil {
			return err
		}
	}
	if !ours && !certain {
		return fmt.Errorf("%s: %w: its filesystem is not there, another one covers it, or its folder was moved: undo that, or have the snapshot forgotten (\"tidemark snapshot destroy --force\")", path, fs.ErrNotExist)
	}
	if !ours { // it is gone, and somebody else's may have its name
		return nil
	}
	if v.Store.Kind == Inside {
		if err := fiemap.SetImmutable(f, false); err != nil {
			return err
		}
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(path)) // before the record goes, which may lie elsewhere
}

// place returns where the file of a store is now, and whether it is certain that there is none when
// none is there.
func (v *Volume) place(ctl *dm.Control) (path string, certain bool, err error) {
	path = v.Store.Path
	if v.Store.Kind == File {
		certain, err = v.Store.inFolder(path)
		return path, certain, err
	}
	info, err := ctl.Info(v.Name)
	if errors.Is(err, dm.ErrNotFound) {
		return path, false, nil // an adopted disk that is plain again has it where it was
	}
	if err != nil {
		return "", false, err
	}
	f, err := filesystem(info.Dev())
	if err != nil {
		return "", false, err
	}
	dir, err := top(f)
	if err != nil {
		return "", false, err
	}
	path = filepath.Join(dir, cmp.Or(v.Store.Below, filepath.Base(path)))
	certain, err = v.Store.inFolder(path)
	return path, certain, err
}
