package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
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
	if v.Era {
		return fmt.Errorf("%w: it is an era device, which comes up by itself", ErrNotKept)
	}
	if len(v.Store.Ranges) > 0 {
		return fmt.Errorf("%w: a part of a device may be used by others after the boot: give a whole disk or partition", ErrNotKept)
	}
	if v.Store.Kind == File {
		return fmt.Errorf("%w: %s lies on a filesystem that is mounted later: leave --store out, or give a disk or partition", ErrNotKept, v.Store.Path)
	}
	n, err := v.look(v.path())
	if err == nil && n.volume() == nil {
		err = fmt.Errorf("%w: nothing on it tells whether it was mounted without the snapshot; ext4 and XFS do", ErrNotKept)
	}
	return err
}

// lasting reports whether there is something to bring up at a boot. An incremental snapshot has no
// store, whatever was cut off.
func (s *Snapshot) lasting() bool { return s.Persistent && s.Up && !s.Incremental }

// PersistentOf returns the names of the persistent snapshots of a device.
func PersistentOf(device string) (names []string, err error) {
	list, err := listIn(Options{}, EarlyDir)
	for _, s := range list {
		if s.lasting() && slices.ContainsFunc(s.Volumes, func(v *Volume) bool { return v.Name == device }) {
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
			if v.Name != device || !s.lasting() {
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
	other := v.another(ctl)
	if s.Rollback {
		if other != nil {
			return nil, fmt.Errorf("the rollback cannot go on: %w", other)
		}
		return s.resume(ctx, ctl, v, kind, wait)
	}
	_, there, err := own(ctl, s.copied(v))
	if err != nil || there && kind != plain {
		return nil, errors.Join(err, s.reopen(ctl, v, kind))
	}
	why := other
	if why == nil {
		why = s.bringUp(ctx, ctl, v, wait)
	}
	if why == nil {
		return []string{fmt.Sprintf("the snapshot %s of %s is there again", s.Name, v.Name)}, nil
	}
	if err := s.drop(context.WithoutCancel(ctx), ctl, v, why.Error()); err != nil {
		return nil, errors.Join(err, why)
	}
	return []string{s.dropped(v)}, nil
}

// another returns why the device of a volume's name is not the volume, nil when it is.
func (v *Volume) another(ctl *dm.Control) error {
	info, err := ctl.Info(v.Name)
	if errors.Is(err, dm.ErrNotFound) {
		return nil
	}
	if err == nil && info.UUID != v.UUID {
		err = fmt.Errorf("%s is another device: its UUID is %q, and was %q", info.Path(), info.UUID, v.UUID)
	}
	return err
}

// bringUp has a volume that nobody uses keep its snapshot again, or tells why it must not.
func (s *Snapshot) bringUp(ctx context.Context, ctl *dm.Control, v *Volume, wait time.Duration) error {
	d, err := v.claim()
	if errors.Is(err, unix.EBUSY) {
		return errors.New("the disk was in use before it could be brought up")
	}
	if err != nil {
		return err
	}
	defer d.Close()
	if err := s.judge(ctx, ctl, v, wait); err != nil {
		return err
	}
	if err := s.raise(ctl, v); err != nil {
		return err
	}
	return s.join(ctl, v)
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

// judge returns why the store must not be taken for what the volume, which is claimed, was, nil when
// it may.
func (s *Snapshot) judge(ctx context.Context, ctl *dm.Control, v *Volume, wait time.Duration) error {
	now, err := v.read(v.path())
	if err != nil {
		return err
	}
	now.Still = true
	if err := now.since(v.Note); err != nil {
		return err
	}
	return s.stored(ctx, ctl, v, wait)
}

// stored returns why what is where the store of a volume was is not that, nil when it is. Without a
// header the kernel would take it for a new and empty one.
func (s *Snapshot) stored(ctx context.Context, ctl *dm.Control, v *Volume, wait time.Duration) error {
	path := v.path()
	if _, there, err := own(ctl, v.real()); err != nil {
		return err
	} else if there {
		path = "/dev/mapper/" + v.real()
	}
	if v.Store.Kind == Block {
		path = v.Store.Path
		if err := await(ctx, path, wait); err != nil {
			return err
		}
	}
	d, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return err
	}
	defer d.Close()
	r := pieces{aligned{d}, v.Store}
	store, err := snapstore.Open(r, v.Store.Size)
	if err != nil {
		return err
	}
	if store.ChunkSize() != s.Chunk {
		return fmt.Errorf("its store has chunks of %d bytes, not of %d", store.ChunkSize(), s.Chunk)
	}
	return errors.Join(store.Valid(), v.Store.marked(r))
}

// await waits until a file is there.
func await(ctx context.Context, path string, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		_, err := os.Stat(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// made reports whether a device of ours is there. One that a crash left without a table goes.
func made(ctl *dm.Control, name string) (bool, error) {
	info, there, err := own(ctl, name)
	if err != nil || !there || info.ActiveTable {
		return there, err
	}
	return false, gone(ctl, name)
}

// raiseReal makes the device that a volume consists of, unless it is there.
func (v *Volume) raiseReal(ctl *dm.Control) error {
	there, err := made(ctl, v.real())
	if there || err != nil {
		return err
	}
	table, _, err := ctl.Table(v.Name)
	if err != nil {
		return err
	}
	return add(ctl, v.real(), table, dm.LoadOptions{})
}

// raise makes the devices of a volume, as far as they are not there.
func (s *Snapshot) raise(ctl *dm.Control, v *Volume) error {
	if err := v.raiseReal(ctl); err != nil {
		return err
	}
	store := v.pieces()
	if v.Store.Kind == Block {
		store = v.Store.table()
	}
	for _, d := range []struct {
		name  string
		table []dm.Target
	}{{s.cow(v), store}, {s.copied(v), s.table(v, "snapshot")}} {
		there, err := made(ctl, d.name)
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
	err := errors.Join(s.write(), s.takeDown(ctx, ctl, v, true))
	_ = s.unmark(v) // the record is enough
	return err
}

// wipe takes the header from the store of a volume whose devices are there. A command that was cut off
// may have left the one of the store before it had a table, or before /dev/mapper had it.
func (s *Snapshot) wipe(ctl *dm.Control, v *Volume) error {
	info, err := ctl.Info(s.cow(v))
	if err != nil {
		return err
	}
	if !info.ActiveTable {
		return s.unmark(v)
	}
	d, err := block.Open(info.KernelPath(), block.Options{Write: true, Direct: true})
	if err != nil {
		return err
	}
	return s.blank(d, 0)
}

// blank overwrites the first chunk of a store, which begins at off of a device, and closes that.
func (s *Snapshot) blank(d *block.Device, off int64) error {
	_, err := d.WriteAt(block.AlignedBuffer(int(s.Chunk)), off)
	return errors.Join(err, d.Sync(), d.Close())
}

// unmark is wipe for a volume whose devices are not there. If the file of the store was removed
// without us, its blocks may be another file's by now: only a header of ours is overwritten.
func (s *Snapshot) unmark(v *Volume) error {
	path, off := v.path(), int64(0)
	if v.Store.Kind == Block {
		path = v.Store.Path
	} else if len(v.Store.Pieces) > 0 {
		off = v.Store.Pieces[0].Off
	}
	d, err := block.Open(path, block.Options{Write: true, Direct: true})
	if err != nil {
		return err
	}
	r := pieces{aligned{d}, v.Store}
	if _, err = snapstore.Open(r, v.Store.Size); err == nil {
		err = v.Store.marked(r)
	}
	if err == nil {
		return s.blank(d, off)
	}
	if errors.Is(err, snapstore.ErrNotStore) || errors.Is(err, errOther) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// keep looks after a persistent snapshot: what its filesystems are like is noted, what a boot has
// gone past, or the kernel has given up, is dropped, and a rollback that is done is ended.
func (s *Snapshot) keep(ctx context.Context, ctl *dm.Control) (done []string, err error) {
	if s.Rollback {
		return s.carryOn(ctx, ctl)
	}
	for _, v := range s.Volumes {
		if _, err := ctl.Info(v.Name); errors.Is(err, dm.ErrNotFound) {
			continue // it may come
		}
		told, aerr := s.assemble(ctx, ctl, v, 0)
		if aerr == nil && v.Dropped == "" {
			var lost bool
			if lost, aerr = s.givenUp(ctl, v); lost {
				told = append(told, s.dropped(v))
			}
		}
		done, err = append(done, told...), errors.Join(err, aerr)
	}
	changed, nerr := s.note()
	if nerr == nil && changed {
		nerr = s.write()
	}
	return done, errors.Join(err, nerr)
}

// givenUp drops a volume whose snapshot the kernel does not keep any more. The store may not say so,
// when it could not be written to, and a boot would take it for what the volume was. The devices stay
// until the snapshot is destroyed: the image may be in use.
func (s *Snapshot) givenUp(ctl *dm.Control, v *Volume) (bool, error) {
	u, err := s.usage(ctl, v)
	if err != nil || u.State == dmsnap.Valid {
		return false, err
	}
	v.Dropped = "its store was full, or failed"
	if err := s.write(); err != nil {
		return true, err
	}
	_ = s.wipe(ctl, v) // the record suffices; and the store that failed may fail again
	return true, nil
}
