package bpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tidemark/block"
	"tidemark/linux/atomicfile"
	"tidemark/linux/bpf"
	"tidemark/linux/sysfs"
	"tidemark/track"
	"tidemark/track/history"
)

const detached = "the tracking programs were damaged, detached, or installed by another version"

// enter returns the tracker of a source, after it has called join with the locks held.
// With begin it starts tracking where that is not on, or can no longer be vouched for;
// what it has begun is taken back when anything fails.
func enter(ctx context.Context, source *block.Device, opts Options, begin bool, join func(*Tracker) error) (*Tracker, error) {
	id, err := identify(source)
	if err != nil {
		return nil, err
	}
	pl := opts.paths()
	if err := pl.ready(id, begin); err != nil {
		return nil, err
	}
	unlock, err := pl.lock(ctx, id.Disk)
	if err != nil {
		return nil, err
	}
	defer unlock()
	fac, broken, err := load(pl.pins, begin)
	if err != nil {
		return nil, err
	}
	s := &session{pl: pl, source: id, fac: fac}
	t := &Tracker{s: s, slice: sliceOf(id), own: map[uint64]bool{}}
	began, err := s.resumeOrBegin(ctx, opts, begin, broken)
	if err == nil {
		err = join(t)
	}
	if err == nil {
		return t, nil
	}
	err = errors.Join(err, t.leave())
	if began {
		err = errors.Join(err, s.forget())
	}
	if begin {
		err = errors.Join(err, s.removeUnused())
	}
	return nil, errors.Join(err, s.close())
}

// ready makes what begin needs before anything is locked, or says that there is nothing
// to go on with.
func (p paths) ready(id block.Identity, begin bool) error {
	if !begin {
		if _, err := os.Stat(p.record(id.Disk)); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("track: %s: %w", id.Disk, ErrNotTracked)
		}
		return nil
	}
	if err := errors.Join(refuseDAX(id), refuseRemovable(id)); err != nil {
		return err
	}
	if err := os.MkdirAll(p.disk(id.Disk), 0o700); err != nil {
		return history.Unwritable(err)
	}
	return bpf.MountFS(p.bpffs)
}

// lock takes the machine's lock, then the disk's two.
func (p paths) lock(ctx context.Context, disk string) (unlock func(), err error) {
	var locks []func()
	unlock = func() {
		for _, f := range slices.Backward(locks) {
			f()
		}
	}
	for _, path := range []string{p.lockFile(), history.LockFile(p.disk(disk)), filepath.Join(p.disk(disk), flipLock)} {
		l, err := history.Lock(ctx, path)
		if err != nil {
			unlock()
			return nil, err
		}
		locks = append(locks, l)
	}
	return unlock, nil
}

// load opens the installed programs; with begin it installs them where they are not.
// Broken says that others were there and had to be removed.
func load(dir string, begin bool) (fac *bpf.Facility, broken bool, err error) {
	fac, err = bpf.Load(dir)
	broken = errors.Is(err, bpf.ErrBroken)
	switch {
	case !broken && !errors.Is(err, bpf.ErrNotInstalled):
		return fac, false, err
	case !begin:
		return nil, false, track.Lost(detached)
	case broken:
		if err := bpf.Remove(dir); err != nil {
			return nil, true, err
		}
	}
	fac, err = bpf.Install(dir)
	return fac, broken, err
}

// resumeOrBegin reports whether it began a new generation, if only in part.
func (s *session) resumeOrBegin(ctx context.Context, opts Options, begin, broken bool) (began bool, err error) {
	why, err := s.resume()
	switch {
	case err != nil:
		return false, err
	case why == "" && opts.BlockSize != 0 && opts.BlockSize != s.rec.Granularity:
		return false, fmt.Errorf("track: /dev/%s is already tracked with a block size of %d bytes, not %d bytes: \"tidemark track stop /dev/%s\" ends that, and the next run of each mirror of it reads everything",
			s.source.Disk, s.rec.Granularity, opts.BlockSize, s.source.Disk)
	case why == "":
		return false, nil
	case why == notTracked && !begin:
		return false, fmt.Errorf("track: %s: %w", s.source.Disk, ErrNotTracked)
	case why != notTracked && broken:
		why = detached
	}
	if !begin {
		return false, track.Lost("%s", why)
	}
	return true, s.beginOrTakeUp(ctx, opts, why)
}

// notTracked is why marks are lost when there is no trace of their generation.
const notTracked = "the disk was not tracked before"

// resume loads the record and returns why it cannot be gone on with.
func (s *session) resume() (why string, err error) {
	s.rec, err = loadRecord(s.pl, s.source.Disk)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return notTracked, nil
	case damaged(err):
		return "the record of the tracking was damaged", nil
	case err != nil:
		return "", err
	}
	if why, err = s.rec.differs(s.source); why != "" || err != nil {
		return why, err
	}
	if _, err := s.history().Leases(); damaged(err) {
		return "the list of kept marks was damaged", nil
	} else if err != nil {
		return "", err
	}
	cur, err := s.current()
	if lost := (*track.LostError)(nil); errors.As(err, &lost) {
		return lost.Reason, nil
	} else if err != nil {
		return "", err
	}
	defer cur.Close()
	return s.dead(cur)
}

func damaged(err error) bool { return errors.Is(err, atomicfile.ErrDamaged) }

// begin starts a new generation. The record is written last: without one, what was made
// before is removed by the next start or stop.
func (s *session) begin(ctx context.Context, opts Options, why string) error {
	granularity := opts.BlockSize
	if granularity == 0 {
		granularity = defaultBlockSize(s.source.DiskSize, s.fac.MaxBlocks())
	}
	if err := s.prepare(granularity, why); err != nil {
		return err
	}
	if err := s.arm(bpf.Header{Epoch: 1}); err != nil {
		return err
	}
	if s.source.BioBased {
		if err := s.drain(ctx, opts.Drain); err != nil {
			return err
		}
	}
	return s.rec.save(s.pl)
}

// prepare makes the record of a new generation, and has its place in the kernel.
func (s *session) prepare(granularity int64, why string) error {
	id := s.source
	if id.DiskSize <= 0 {
		return fmt.Errorf("track: %s: the device has no size", id.Disk)
	}
	if err := validBlockSize(granularity, id.DiskSize, s.fac.MaxBlocks()); err != nil {
		return err
	}
	if err := s.forget(); err != nil {
		return err
	}
	slot, err := s.freeSlot()
	if err != nil {
		return err
	}
	mapping, err := s.mapping(id.Disk)
	if err != nil {
		return fmt.Errorf("%w: a device-mapper table that cannot be watched: %w", bpf.ErrNotSupported, err)
	}
	if s.rec, err = newRecord(id, granularity, slot, mapping, why); err != nil {
		return err
	}
	if mapping != "" {
		s.rec.Swaps, err = s.fac.WatchSwaps()
	}
	return err
}

// arm makes the programs mark the disk's blocks, in an epoch with that header.
func (s *session) arm(h bpf.Header) error {
	b, err := s.spare(h.Epoch)
	if err != nil {
		return err
	}
	defer b.Close()
	misses, err := s.fac.Misses(s.rec.BioBased)
	if err != nil {
		return err
	}
	h.BaseQueue, h.BaseComplete = misses.Queue, misses.Complete
	h.Opened, h.Active = time.Now().UnixNano(), true
	b.SetHeader(h)
	d, err := s.entry()
	if err != nil {
		return err
	}
	return s.fac.Put(d, b)
}

func (s *session) entry() (bpf.Disk, error) {
	id := s.source
	d := bpf.Disk{
		Dev:     s.rec.dev(),
		DiskSeq: id.DiskSeq,
		Sectors: uint64(id.DiskSize / bpf.Sector),
		Slot:    s.rec.Slot,
		Shift:   uint32(bits.TrailingZeros64(uint64(s.rec.Granularity / bpf.Sector))),
	}
	if id.BioBased {
		d.Flags |= bpf.DiskBio
	}
	if remaps(id.Disk) {
		d.Flags |= bpf.DiskRemap
	}
	if strings.HasPrefix(id.Disk, "nvme") {
		d.Flags |= bpf.DiskNVMe
	}
	if !id.Zoned {
		return d, nil
	}
	n, err := sysfs.Uint(filepath.Join(sysfs.DiskDir(id.Disk), "queue", "chunk_sectors"))
	if err == nil && (n == 0 || n != uint64(uint32(n))) {
		err = fmt.Errorf("%d sectors", n)
	}
	if err != nil {
		return d, fmt.Errorf("track: zone size: %w", err)
	}
	d.ZoneSectors = uint32(n)
	return d, nil
}

// remaps reports whether the disk's driver only sends on what it is given: device-mapper,
// and md without parity. drivers/md/raid5.c traces writes of its own as remapped ones.
func remaps(disk string) bool {
	level, err := sysfs.Text(filepath.Join(sysfs.DiskDir(disk), "md", "level"))
	if err != nil {
		return strings.HasPrefix(disk, "dm-")
	}
	switch level {
	case "linear", "raid0", "raid1", "raid10":
		return true
	}
	return false
}

// refuseDAX refuses a disk whose filesystems may be mounted so that programs write to
// its memory (queue/dax, Documentation/ABI/stable/sysfs-block): no bio, no request.
func refuseDAX(id block.Identity) error {
	dax, err := sysfs.Text(filepath.Join(sysfs.DiskDir(id.Disk), "queue", "dax"))
	if err == nil && dax == "1" {
		return fmt.Errorf("track: %s: it can be mounted with DAX, and writes then pass the block layer by: %w", id.Disk, bpf.ErrNotSupported)
	}
	return nil
}

// refuseRemovable refuses a disk whose medium can be replaced, where the kernel does not tell
// of that.
func refuseRemovable(id block.Identity) error {
	removable, err := sysfs.Text(filepath.Join(sysfs.DiskDir(id.Disk), "removable"))
	if id.DiskSeq == 0 && err == nil && removable == "1" {
		return fmt.Errorf("track: %s: its medium can be replaced, of which the kernel does not tell before Linux 5.15: %w", id.Disk, bpf.ErrNotSupported)
	}
	return nil
}

// Fits says what keeps the disk of a source from being tracked by a kernel that can track
// others; nil is nothing. It starts nothing. The error wraps ErrNotSupported.
func Fits(source *block.Device) error {
	id, err := identify(source)
	if err != nil {
		return err
	}
	if err := errors.Join(refuseDAX(id), refuseRemovable(id)); err != nil || !id.BioBased {
		return err
	}
	s := &session{source: id}
	_, err = s.mapping(id.Disk)
	if s.ctl != nil {
		err = errors.Join(err, s.ctl.Close())
	}
	if err != nil {
		return fmt.Errorf("%w: a device-mapper table that cannot be watched: %w", bpf.ErrNotSupported, err)
	}
	return countsInFlight(id.Disk)
}

func (s *session) freeSlot() (uint32, error) {
	disks, err := s.fac.Disks()
	if err != nil {
		return 0, err
	}
	var used [bpf.MaxSlots]bool
	for _, d := range disks {
		used[d.Slot%bpf.MaxSlots] = true
	}
	for slot, taken := range used {
		if !taken {
			return uint32(slot), nil
		}
	}
	return 0, fmt.Errorf("track: %d disks are tracked already, no more fit", bpf.MaxSlots)
}
