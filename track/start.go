package track

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"tidemark/block"
	"tidemark/linux/bpf"
)

// start returns the session of the disk, beginning one when tracking is not on
// or can no longer be vouched for. It takes the machine's lock, then the
// disk's two: always in the order machine, history, flip.
func start(ctx context.Context, id block.Identity, opts Options) (*session, error) {
	if err := refuseDAX(id); err != nil {
		return nil, err
	}
	pl := opts.place()
	dir := pl.disk(id.Disk)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("track: %w", err)
	}
	if err := bpf.MountFS(pl.bpffs); err != nil {
		return nil, err
	}
	machine, err := lockPath(ctx, pl.lockFile())
	if err != nil {
		return nil, err
	}
	defer machine.unlock()
	history, err := lockPath(ctx, filepath.Join(dir, historyLock))
	if err != nil {
		return nil, err
	}
	defer history.unlock()
	flip, err := lockPath(ctx, filepath.Join(dir, flipLock))
	if err != nil {
		return nil, err
	}
	defer flip.unlock()

	fac, broken, err := loadOrInstall(pl.pins)
	if err != nil {
		return nil, err
	}
	s := &session{pl: pl, dir: dir, fac: fac}
	if err := s.resumeOrBegin(ctx, id, opts, broken); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// loadOrInstall opens the installed programs, or installs them. Broken says
// that others were there and had to be removed.
func loadOrInstall(dir string) (fac *bpf.Facility, broken bool, err error) {
	fac, err = bpf.Load(dir)
	switch {
	case errors.Is(err, bpf.ErrBroken):
		if err := bpf.Remove(dir); err != nil {
			return nil, true, err
		}
		fac, err = bpf.Install(dir)
		return fac, true, err
	case errors.Is(err, bpf.ErrNotInstalled):
		fac, err = bpf.Install(dir)
	}
	return fac, false, err
}

const detached = "the tracking programs were damaged, detached, or installed by another version"

func (s *session) resumeOrBegin(ctx context.Context, id block.Identity, opts Options, broken bool) error {
	why, err := s.resume(id)
	if err != nil {
		return err
	}
	if why != "" && why != notTracked && broken {
		why = detached
	}
	if why != "" {
		return s.begin(ctx, id, opts, why)
	}
	if opts.BlockSize != 0 && opts.BlockSize != s.rec.Granularity {
		return fmt.Errorf("track: %s is already tracked with a block size of %d, not %d: stop tracking it first",
			id.Disk, s.rec.Granularity, opts.BlockSize)
	}
	return nil
}

// notTracked is why marks are lost when there is no trace of their generation.
const notTracked = "the disk was not tracked before"

// resume loads the record and returns why it cannot be gone on with.
func (s *session) resume(id block.Identity) (why string, err error) {
	s.rec, err = loadRecord(s.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return notTracked, nil
	case errors.Is(err, errDamagedState):
		return "the record of the tracking was damaged", nil
	case err != nil:
		return "", err
	}
	if why, err = s.rec.differs(id); why != "" || err != nil {
		return why, err
	}
	if _, err := loadLeases(s.dir); errors.Is(err, errDamagedState) {
		return "the list of kept marks was damaged", nil
	} else if err != nil {
		return "", err
	}
	cur, err := s.current()
	if lost := (*LostError)(nil); errors.As(err, &lost) {
		return lost.Reason, nil
	} else if err != nil {
		return "", err
	}
	defer cur.Close()
	return s.dead(cur)
}

// begin starts a new generation. The record is written last: without one, what
// was made before is removed by the next start.
func (s *session) begin(ctx context.Context, id block.Identity, opts Options, why string) error {
	granularity := opts.BlockSize
	if granularity == 0 {
		granularity = defaultBlockSize(id.DiskSize)
	}
	if id.DiskSize <= 0 {
		return fmt.Errorf("track: %s: the device has no size", id.Disk)
	}
	if err := validBlockSize(granularity, id.DiskSize); err != nil {
		return err
	}
	if err := s.forget(id); err != nil {
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
	if err := s.arm(id); err != nil {
		return errors.Join(err, s.disarm())
	}
	if id.BioBased {
		if err := s.drain(ctx, opts.Drain); err != nil {
			return errors.Join(err, s.disarm())
		}
	}
	if err := writeJSON(filepath.Join(s.dir, recordFile), s.rec); err != nil {
		return errors.Join(err, s.disarm())
	}
	return nil
}

// arm makes the programs mark the disk's blocks.
func (s *session) arm(id block.Identity) error {
	b, err := s.spare(1)
	if err != nil {
		return err
	}
	defer b.Close()
	misses, err := s.fac.Misses()
	if err != nil {
		return err
	}
	b.SetHeader(bpf.Header{
		Epoch: 1, BaseQueue: misses.Queue, BaseComplete: misses.Complete,
		Opened: s.rec.Since.UnixNano(), Active: true,
	})
	d, err := s.entry(id)
	if err != nil {
		return err
	}
	return s.fac.Put(d, b)
}

func (s *session) entry(id block.Identity) (bpf.Disk, error) {
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
	if remaps(id) {
		d.Flags |= bpf.DiskRemap
	}
	if strings.HasPrefix(id.Disk, "nvme") {
		d.Flags |= bpf.DiskNVMe
	}
	if !id.Zoned {
		return d, nil
	}
	path := filepath.Join("/sys/block", id.Disk, "queue", "chunk_sectors")
	raw, err := os.ReadFile(path)
	if err != nil {
		return d, fmt.Errorf("track: zone size: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 32)
	if err != nil || n == 0 {
		return d, fmt.Errorf("track: zone size: %s: %q", path, raw)
	}
	d.ZoneSectors = uint32(n)
	return d, nil
}

// remaps reports whether the disk's driver only sends on what it is given: device-mapper,
// and md without parity. drivers/md/raid5.c traces writes of its own as remapped ones.
func remaps(id block.Identity) bool {
	level, err := os.ReadFile(filepath.Join("/sys/block", id.Disk, "md", "level"))
	if err != nil {
		return strings.HasPrefix(id.Disk, "dm-")
	}
	switch strings.TrimSpace(string(level)) {
	case "linear", "raid0", "raid1", "raid10":
		return true
	}
	return false
}

// disarm undoes arm.
func (s *session) disarm() error {
	errs := []error{s.fac.Drop(s.rec.dev())}
	epochs, err := s.epochs()
	errs = append(errs, err)
	for _, e := range epochs {
		errs = append(errs, bpf.Unpin(s.pl.pin(s.rec.Generation, e)))
	}
	return errors.Join(errs...)
}

// forget removes what earlier generations of the disk left: the entry in the
// kernel, the bitmaps of no living record, the files.
func (s *session) forget(id block.Identity) error {
	if err := os.Remove(filepath.Join(s.dir, recordFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("track: %w", err)
	}
	if err := s.fac.Drop(bpf.DevT(id.DiskMajor, id.DiskMinor)); err != nil {
		return err
	}
	if err := sweepKernel(s.pl, s.fac); err != nil {
		return err
	}
	return removeHistory(s.dir)
}

// sweepKernel removes entries and bitmaps that belong to no record. The
// machine's lock must be held.
func sweepKernel(pl place, fac *bpf.Facility) error {
	recs, err := records(pl)
	if err != nil {
		return err
	}
	devs, gens := map[uint32]bool{}, map[string]bool{}
	for _, r := range recs {
		devs[r.dev()], gens[r.Generation] = true, true
	}
	disks, err := fac.Disks()
	if err != nil {
		return err
	}
	for dev := range disks {
		if !devs[dev] {
			if err := fac.Drop(dev); err != nil {
				return err
			}
		}
	}
	entries, err := os.ReadDir(pl.pins)
	if err != nil {
		return fmt.Errorf("track: list bitmaps: %w", err)
	}
	for _, e := range entries {
		if gen, _, ok := parsePin(e.Name()); ok && !gens[gen] {
			if err := bpf.Unpin(filepath.Join(pl.pins, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// records returns the readable records of all disks.
func records(pl place) ([]record, error) {
	entries, err := os.ReadDir(pl.run)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("track: list tracked disks: %w", err)
	}
	var recs []record
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		r, err := loadRecord(pl.disk(e.Name()))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errDamagedState) {
			continue
		}
		if err != nil {
			return nil, err
		}
		recs = append(recs, r)
	}
	return recs, nil
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
