package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/format/snapstore"
	"tidemark/linux/dm"
	"tidemark/linux/dmsnap"
)

// EarlyDir is where the records of persistent snapshots are: on root, so that they can be read
// before anything else is mounted.
const EarlyDir = "/etc/tidemark/snapshots"

// lasts refuses a volume of a persistent snapshot that could not be brought up before the volume
// is mounted, or of which nobody could tell whether it was used without the snapshot.
func (s *Snapshot) lasts(v *Volume) error {
	if !s.Persistent {
		return nil
	}
	if v.Store.Kind == File {
		return fmt.Errorf("%w: %s lies on a filesystem that is mounted later: leave --store out, or give a disk or partition", ErrNotKept, v.Store.Path)
	}
	n, err := v.look("/dev/mapper/" + v.Name)
	if err == nil && n.volume() == nil {
		err = fmt.Errorf("%w: nothing on it tells whether it was mounted without the snapshot; ext4 and XFS do", ErrNotKept)
	}
	return err
}

// PersistentOf returns the names of the persistent snapshots of a device.
func PersistentOf(device string) (names []string, err error) {
	list, err := listIn(Options{}, EarlyDir)
	for _, s := range list {
		if slices.ContainsFunc(s.Volumes, func(v *Volume) bool { return v.Name == device }) {
			names = append(names, s.Name)
		}
	}
	return names, err
}

// Assemble brings the persistent snapshots of a device up, after a boot and before anything on the
// device is mounted, and tells what it did. It waits for stores that are devices. A snapshot of
// which it cannot be told that the device was not used without it is dropped, and so is one that
// cannot be brought up; that is told, and no error. A rollback that was cut off goes on. After an
// error the device must not be mounted.
func Assemble(ctx context.Context, o Options, device string, wait time.Duration) (done []string, err error) {
	list, err := listIn(o, EarlyDir)
	if len(list) == 0 {
		return nil, err
	}
	unlock, err := o.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	ctl, err := dm.Open()
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	if list, err = listIn(o, EarlyDir); err != nil { // with the lock held
		return nil, err
	}
	for _, s := range list {
		for _, v := range s.Volumes {
			if v.Name != device || !s.Up {
				continue
			}
			told, aerr := s.assemble(ctx, ctl, v, wait)
			if done, err = append(done, told...), errors.Join(err, aerr); aerr != nil {
				err = fmt.Errorf("the snapshot %s of %s: %w", s.Name, v.Name, err)
			}
		}
	}
	return done, err
}

// assemble brings up one volume, or drops it.
func (s *Snapshot) assemble(ctx context.Context, ctl *dm.Control, v *Volume, wait time.Duration) (done []string, err error) {
	kind, err := s.tableOf(ctl, v)
	if err != nil || v.Dropped != "" || kind == absent {
		return nil, err
	}
	if s.Rollback {
		return s.resume(ctx, ctl, v, kind, wait)
	}
	_, there, err := own(ctl, s.copied(v))
	if err != nil || there && kind != plain {
		return nil, errors.Join(err, s.reopen(ctl, v, kind))
	}
	why := s.judge(ctx, v, wait)
	if why == nil {
		if why = s.raise(ctl, v); why == nil {
			why = s.join(ctl, v)
		}
	}
	if why == nil {
		return []string{fmt.Sprintf("the snapshot %s of %s is there again", s.Name, v.Name)}, nil
	}
	if err := s.drop(context.WithoutCancel(ctx), ctl, v, why.Error()); err != nil {
		return nil, errors.Join(err, why)
	}
	return []string{s.dropped(v)}, nil
}

func (s *Snapshot) dropped(v *Volume) string {
	return fmt.Sprintf("the snapshot %s of %s is lost: %s", s.Name, v.Name, v.Dropped)
}

// isUp reports whether a volume keeps the snapshot.
func (s *Snapshot) isUp(ctl *dm.Control, v *Volume) (bool, error) {
	_, there, err := own(ctl, s.copied(v))
	if !there || err != nil {
		return false, err
	}
	kind, err := s.tableOf(ctl, v)
	return kind == kept, err
}

// judge returns why the store must not be taken for what the volume was, nil when it may.
func (s *Snapshot) judge(ctx context.Context, v *Volume, wait time.Duration) error {
	now, err := v.look("/dev/mapper/" + v.Name)
	switch {
	case err != nil:
		return err
	case !now.Still:
		return errors.New("the disk was in use before it could be brought up")
	}
	if err := now.since(v.Note); err != nil {
		return err
	}
	store, d, err := s.openStore(ctx, v, wait)
	if err != nil {
		return err
	}
	return errors.Join(store.Valid(), d.Close())
}

// openStore reads the store of a volume of which no devices are there yet. Without a header the
// kernel would take it for a new and empty one.
func (s *Snapshot) openStore(ctx context.Context, v *Volume, wait time.Duration) (*snapstore.Store, *block.Device, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	path := "/dev/mapper/" + v.Name
	if v.Store.Kind == Block {
		path = v.Store.Path
	}
	for {
		_, err := os.Stat(path)
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
		select {
		case <-ctx.Done():
			return nil, nil, err
		case <-time.After(100 * time.Millisecond):
		}
	}
	d, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return nil, nil, err
	}
	store, err := snapstore.Open(pieces{aligned{d}, v.Store}, v.Store.Size)
	if err == nil && store.ChunkSize() != s.Chunk {
		err = fmt.Errorf("its store has chunks of %d bytes, not of %d", store.ChunkSize(), s.Chunk)
	}
	if err != nil {
		return nil, nil, errors.Join(err, d.Close())
	}
	return store, d, nil
}

// raise makes the devices of a volume, as far as they are not there.
func (s *Snapshot) raise(ctl *dm.Control, v *Volume) error {
	if _, there, err := own(ctl, v.real()); !there || err != nil {
		table, _, terr := ctl.Table(v.Name)
		if err = errors.Join(err, terr); err == nil {
			err = add(ctl, v.real(), table, dm.LoadOptions{})
		}
		if err != nil {
			return err
		}
	}
	store := v.pieces()
	if v.Store.Kind == Block {
		store = whole(v.Store.Path, v.Store.Size)
	}
	for _, d := range []struct {
		name  string
		table []dm.Target
	}{{s.cow(v), store}, {s.copied(v), s.table(v, "snapshot")}} {
		_, there, err := own(ctl, d.name)
		if err == nil && !there {
			err = add(ctl, d.name, d.table, dm.LoadOptions{})
		}
		if err != nil {
			return err
		}
	}
	u, err := s.usage(ctl, v)
	if err == nil && u.State != dmsnap.Valid {
		err = fmt.Errorf("the kernel says of it: %s", u.State)
	}
	return err
}

// join has the volume, which nobody uses, keep the snapshot, and shows the image.
func (s *Snapshot) join(ctl *dm.Control, v *Volume) error {
	had, err := v.snapshotted(ctl)
	if err == nil && !had {
		if _, err = ctl.Load(v.Name, v.table("snapshot-origin", "/dev/mapper/"+v.real()), dm.LoadOptions{}); err == nil {
			_, err = ctl.Resume(v.Name)
		}
	}
	if err != nil {
		return err
	}
	if _, there, err := own(ctl, s.image(v)); there || err != nil {
		return err
	}
	return s.show(ctl, v)
}

// drop gives a volume of a persistent snapshot up: its devices go, nothing can bring it up again,
// and its record says why. The file of the store stays until the snapshot is destroyed.
func (s *Snapshot) drop(ctx context.Context, ctl *dm.Control, v *Volume, why string) error {
	v.Dropped = why
	if err := s.takeDown(ctx, ctl, v, true); err != nil {
		return err
	}
	_ = s.unmark(v) // the record is enough
	err := s.write()
	if errors.Is(err, unix.EROFS) { // root is not writable yet: repair does the rest
		err = os.WriteFile(s.lost(v), []byte(why), 0o600)
	}
	return err
}

// lost is the path of a file that keeps why a volume was dropped while the record cannot.
func (s *Snapshot) lost(v *Volume) string {
	return filepath.Join(s.o.Track.RunDir, "snapshot-"+s.Name+"-"+v.Name+".lost")
}

// wipe takes the header from the store of a volume whose devices are there.
func (s *Snapshot) wipe(v *Volume) error {
	d, err := block.Open("/dev/mapper/"+s.cow(v), block.Options{Write: true, Direct: true})
	if err != nil {
		return err
	}
	_, err = d.WriteAt(block.AlignedBuffer(int(s.Chunk)), 0)
	return errors.Join(err, d.Sync(), d.Close())
}

// unmark is wipe for a volume whose devices are not there. If the file of the store was removed
// without us, its blocks may be another file's by now: only what is a header is overwritten.
func (s *Snapshot) unmark(v *Volume) error {
	path, off := "/dev/mapper/"+v.Name, int64(0)
	if v.Store.Kind == Block {
		path = v.Store.Path
	} else if len(v.Store.Pieces) > 0 {
		off = v.Store.Pieces[0].Off
	}
	d, err := block.Open(path, block.Options{Write: true, Direct: true})
	if err != nil {
		return err
	}
	_, err = snapstore.Open(pieces{aligned{d}, v.Store}, v.Store.Size)
	if err == nil {
		_, err = d.WriteAt(block.AlignedBuffer(int(s.Chunk)), off)
		err = errors.Join(err, d.Sync())
	} else if errors.Is(err, snapstore.ErrNotStore) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// keep looks after a persistent snapshot, while root can be written: what its filesystems are like
// is noted, what a boot has gone past is dropped, and a rollback that is done is ended.
func (s *Snapshot) keep(ctx context.Context, ctl *dm.Control) (done []string, err error) {
	if s.Rollback {
		return s.carryOn(ctx, ctl)
	}
	for _, v := range s.Volumes {
		if _, err := ctl.Info(v.Name); errors.Is(err, dm.ErrNotFound) {
			continue // it may come
		}
		if why, err := os.ReadFile(s.lost(v)); err == nil && v.Dropped == "" {
			if v.Dropped = string(why); s.write() == nil {
				_ = os.Remove(s.lost(v)) // the record says it
			}
			continue
		}
		if v.Dropped != "" {
			continue
		}
		told, aerr := s.assemble(ctx, ctl, v, 0)
		done, err = append(done, told...), errors.Join(err, aerr)
	}
	before := slices.Clone(s.Volumes)
	for i, v := range s.Volumes {
		w := *v
		before[i] = &w
	}
	nerr := s.note()
	if nerr == nil && slices.ContainsFunc(s.Volumes, func(v *Volume) bool {
		return slices.ContainsFunc(before, func(w *Volume) bool { return w.Name == v.Name && !w.Note.same(v.Note) })
	}) {
		nerr = s.write()
	}
	return done, errors.Join(err, nerr)
}
