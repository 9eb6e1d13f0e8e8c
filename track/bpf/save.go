package bpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
	"tidemark/track"
	"tidemark/track/history"
	"tidemark/witness"
)

// Save writes down what is known of the changes of a disk, at the end of a shutdown when nobody uses
// it any more, so that Resume goes on with it at the next boot. Before that it makes the disk
// read-only in the kernel: no program, and no filesystem that is mounted yet, can then write what
// the record lacks. When it cannot vouch for the changes it writes down why, for the user, and returns
// a track.LostError; the disk is writable then.
//
// The filesystems of a disk with the root filesystem must be read-only, for they are not unmounted.
//
// The error wraps ErrNotTracked when there is nothing to save, history.ErrUnwritable when the place
// cannot be written.
func Save(ctx context.Context, source *block.Device, opts Options, at Place) error {
	t, err := Attach(ctx, source, opts)
	if err == nil {
		save := t.saveTo
		if at.Root {
			save = t.saveRoot
		}
		err = errors.Join(save(ctx, at), t.Close())
	}
	if lost := (*track.LostError)(nil); errors.As(err, &lost) {
		err = errors.Join(err, at.write(saved{Time: time.Now().UTC(), Lost: lost.Reason}))
	}
	return err
}

// AwaitUnused waits until nobody uses the disk of the source any more, at most for so long: that
// there is still somebody is told by Save.
func AwaitUnused(ctx context.Context, source *block.Device, limit time.Duration) error {
	id, err := identify(source)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(limit); ; {
		err := unused(id.Disk, "")
		if !errors.Is(err, track.ErrMarkLost) {
			return err
		}
		if time.Now().After(deadline) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(usePoll):
		}
	}
}

// usePoll is how often a disk that is in use is looked at again.
const usePoll = 50 * time.Millisecond

// saveTo is Save of what is tracked.
func (t *Tracker) saveTo(ctx context.Context, at Place) (err error) {
	disk := t.s.rec.Disk
	if err := unused(disk, "it was still in use when the machine was shut down"); err != nil {
		return err
	}
	if err := t.s.pl.makeReadOnly(disk); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.s.pl.makeWritable(disk))
		}
	}()
	// Who came before the disk was read-only is seen now.
	if err := unused(disk, "it was still in use when the machine was shut down"); err != nil {
		return err
	}
	sv, err := t.settle(ctx)
	if err != nil {
		return err
	}
	if err := at.write(sv); err != nil {
		return err
	}
	return t.unchanged(ctx, extent.Set{})
}

// settle waits until all that was written is on the disk, and returns what is to be saved of it. Nobody
// writes to the disk any more.
func (t *Tracker) settle(ctx context.Context) (sv saved, err error) {
	disk := t.s.rec.Disk
	// What a program wrote through the page cache of the disk before is on it then.
	if err := syncAll(disk); err != nil {
		return sv, err
	}
	if err := WaitIdle(ctx, disk, idleLimit); err != nil {
		return sv, err
	}
	if _, err := t.Cut(ctx); err != nil {
		return sv, err
	}
	if sv, err = t.gather(ctx); err != nil {
		return sv, err
	}
	return sv, sv.witness(disk)
}

// witness adds the witness of a disk on which every filesystem is clean.
func (sv *saved) witness(disk string) (err error) {
	if sv.Witness, err = witnessOf(disk); err != nil {
		return err
	}
	if bad := sv.Witness.Unclean(); len(bad) > 0 {
		return track.Lost("%s at byte %d of the disk was not unmounted cleanly", bad[0].Kind, bad[0].Off)
	}
	return nil
}

// gather returns what is to be saved, but for the witness.
func (t *Tracker) gather(ctx context.Context) (sv saved, err error) {
	if err := t.Persist(ctx); err != nil {
		return sv, err
	}
	if err := t.unchanged(ctx, extent.Set{}); err != nil {
		return sv, err
	}
	h, err := t.now(ctx)
	if err != nil {
		return sv, err
	}
	sv = saved{
		Time: time.Now().UTC(), Identity: identityOf(t.s.rec.Disk), Record: t.s.rec,
		Epoch: h.Epoch, Floor: h.Floor, Why: h.FloorWhy, Misses: h.FloorMisses, Doubted: h.Doubted,
	}
	unlock, err := history.Lock(ctx, history.LockFile(t.s.dir()))
	if err != nil {
		return sv, err
	}
	defer unlock()
	sv.History, err = t.s.history().Save()
	return sv, err
}

// unchanged fails when anything but that changed, or may have, in the open epoch.
func (t *Tracker) unchanged(ctx context.Context, but extent.Set) error {
	cur, err := t.s.openNow(ctx)
	if err != nil {
		return err
	}
	defer cur.Close()
	set, err := t.s.set(cur)
	if err != nil {
		return err
	}
	h, err := t.s.ifEnded(cur)
	if err != nil {
		return err
	}
	switch set = set.Subtract(but); {
	case !set.Empty():
		return track.Lost("%d bytes of the disk were written while its tracking was saved", set.Bytes())
	case h.Floor > cur.Header().Floor:
		return track.Lost("while its tracking was saved: %s", lostReason(0, h.FloorMisses))
	}
	return nil
}

// unused fails when anybody uses the disk.
func unused(disk, why string) error {
	table, err := mounts.Read()
	if err != nil {
		return err
	}
	use, err := table.UseOf(sysfs.DevPath(disk))
	if err != nil {
		return err
	}
	if use.InUse() {
		return track.Lost("%s: %s", why, use)
	}
	return nil
}

// witnessOf reads the witness of a disk past the page cache.
func witnessOf(disk string) (witness.Witness, error) {
	d, err := block.Open(sysfs.DevPath(disk), block.Options{Direct: true})
	if err != nil {
		return witness.Witness{}, fmt.Errorf("track: %w", err)
	}
	w, err := witness.Read(d, d.Size())
	return w, errors.Join(err, d.Close())
}

// syncAll writes out the page caches of a disk and of its partitions, each of which has its own.
func syncAll(disk string) error {
	parts, err := filepath.Glob(filepath.Join(sysfs.DiskDir(disk), "*", "partition"))
	if err != nil {
		return fmt.Errorf("track: %w", err)
	}
	names := []string{disk}
	for _, p := range parts {
		names = append(names, filepath.Base(filepath.Dir(p)))
	}
	for _, name := range names {
		if err := onDisk(name, unix.Fsync); err != nil {
			return err
		}
	}
	return nil
}

// readOnly is a file that is there while a disk is read-only because of Save.
func (p paths) readOnly(disk string) string { return filepath.Join(p.disk(disk), "read-only") }

// makeReadOnly makes a disk read-only. The kernel then refuses to open it for writing and to mount
// it so, its partitions too (bdev_read_only in include/linux/blkdev.h). One that is so already stays
// so.
func (p paths) makeReadOnly(disk string) error {
	return onDisk(disk, func(fd int) error {
		if is, err := unix.IoctlGetInt(fd, unix.BLKROGET); err != nil || is != 0 {
			return err
		}
		if err := os.WriteFile(p.readOnly(disk), nil, 0o600); err != nil {
			return history.Unwritable(err)
		}
		return unix.IoctlSetPointerInt(fd, unix.BLKROSET, 1)
	})
}

// makeWritable undoes makeReadOnly, if that was done in this boot.
func (p paths) makeWritable(disk string) error {
	if _, err := os.Stat(p.readOnly(disk)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return onDisk(disk, func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.BLKROSET, 0); err != nil {
			return err
		}
		return remove(p.readOnly(disk))
	})
}

func onDisk(disk string, do func(fd int) error) error {
	f, err := os.Open(sysfs.DevPath(disk))
	if err != nil {
		return fmt.Errorf("track: %w", err)
	}
	defer f.Close()
	if err := do(int(f.Fd())); err != nil {
		return fmt.Errorf("track: save %s: %w", f.Name(), err)
	}
	return nil
}
