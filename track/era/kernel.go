package era

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/era"
	"tidemark/linux/dm"
	"tidemark/linux/dmera"
	"tidemark/linux/sysfs"
)

// kernel is what a Tracker asks of the kernel; the model test has one in memory.
type kernel interface {
	Size() int64 // bytes, when it was opened
	BlockSize() int64
	MetaPath() string
	now(ctx context.Context) (facts, error)
	// prepare does beforehand what take would have to write files for; Unprepare takes
	// it back.
	prepare(ctx context.Context) error
	Unprepare() error
	take(ctx context.Context) (snapshot, error)
	// head returns the first bytes of the source from off on, 4096 or a sector.
	head(off int64) ([]byte, error)
	flush() error // what was written survives a power cut
	// standing reports whether the device is suspended, and in which era it goes on. What was
	// written survives a power cut then.
	standing() (era.Era, bool, error)
	// drain returns when no write from before it is in flight.
	drain(ctx context.Context) error
	Close() error
}

// snapshot is held metadata.
type snapshot interface {
	Era() era.Era     // that began with it
	identity() string // of the metadata; "" when it has none
	Changed(ctx context.Context, since era.Era) (extent.Set, error)
	eras(ascending []era.Block) ([]era.Era, error)
	Retake(ctx context.Context) error // the same, but of now; writes no file
	Close() error
}

// mapped is a device of the kernel's device-mapper.
type mapped struct {
	*dmera.Device
	ctl    *dm.Control
	source *block.Device // the caller's
	fixed  facts         // that need not be asked again
	data   dm.Dev        // whatever is over it
}

// openMapped finds the device by the number of the open source, not by its path.
func openMapped(ctx context.Context, source *block.Device, o Options) (*mapped, error) {
	if !source.IsDevice() {
		return nil, fmt.Errorf("track: %s: %w: %w", source.Path(), dmera.ErrNotEra, block.ErrNotBlockDevice)
	}
	ctl, err := dm.Open()
	if err != nil {
		return nil, fmt.Errorf("track: %w", err)
	}
	m := &mapped{ctl: ctl, source: source}
	if err := m.open(ctx, o); err != nil {
		return nil, errors.Join(fmt.Errorf("track: %s: %w", source.Path(), err), m.Close())
	}
	return m, nil
}

func (m *mapped) open(ctx context.Context, o Options) error {
	number := m.source.Identity().Dev()
	info, err := m.ctl.Find(number.Major, number.Minor)
	if errors.Is(err, dm.ErrNotFound) {
		return fmt.Errorf("%w: %w", dmera.ErrNotEra, err)
	}
	if err != nil {
		return err
	}
	if m.Device, err = dmera.Open(m.ctl, info.Name, dmera.Options{RunDir: o.RunDir, StateDir: o.StateDir}); err != nil {
		return err
	}
	if got := m.Number().String(); got != number.String() {
		return fmt.Errorf("it is device %s, and the name %s was given to device %s meanwhile", number, info.Name, got)
	}
	path := m.DataPath()
	data, err := block.Identify(path)
	if err == nil {
		m.data, err = m.dataOf(data.Dev())
	}
	if err == nil {
		path, err = sysfs.Node(m.data)
	}
	if err != nil {
		return err
	}
	m.fixed = facts{
		Name: m.Name(), BlockSize: m.BlockSize(),
		MetaName: o.StableName(m.MetaPath()), DataName: o.StableName(path),
	}
	// An older one archives the writeset of a device that was not closed ("dm era: Recover
	// committed writeset after crash"). Fixed stable kernels cannot be told by name.
	if m.fixed.forgetful, err = sysfs.KernelBefore(5, 12); err != nil {
		return err
	}
	if m.fixed.Activation.Boot, err = sysfs.BootID(); err != nil {
		return err
	}
	// It writes a file: not in now, which is asked under a freeze.
	m.fixed.gap, err = m.NoteGaps(ctx)
	return err
}

func (m *mapped) head(off int64) ([]byte, error) {
	buf := block.AlignedBuffer(int(min(int64(max(headBytes, m.source.SectorSize())), m.Size()-off)))
	_, err := m.source.ReadAt(buf, off)
	return buf, err
}

func (m *mapped) flush() error { return m.source.Sync() }

// standing asks the metadata: the kernel has ended an era and stored it when it suspended the device,
// and begins the next one when it resumes it. It would answer no message before. A filesystem on the
// device was frozen, or nothing is in flight; the disk below need not have it yet.
func (m *mapped) standing() (era.Era, bool, error) {
	info, err := m.ctl.Info(m.Name())
	if err != nil || !info.Suspended {
		return 0, false, err
	}
	last, err := m.Stored()
	if err != nil {
		return 0, true, err
	}
	path, err := sysfs.Node(m.data)
	if err != nil {
		return 0, true, err
	}
	d, err := block.Open(path, block.Options{})
	if err != nil {
		return 0, true, err
	}
	return last + 1, true, errors.Join(d.Sync(), d.Close())
}

// dataOf looks through what package snapshot puts over the data while there is a snapshot of it, which
// changes no byte of it: devices that are all of another one.
func (m *mapped) dataOf(data dm.Dev) (dm.Dev, error) {
	for {
		info, err := m.ctl.Find(data.Major, data.Minor)
		if errors.Is(err, dm.ErrNotFound) || err == nil && !strings.HasPrefix(info.UUID, "TIDEMARK-SNAPSHOT-") {
			return data, nil
		}
		if err != nil {
			return data, err
		}
		table, _, err := m.ctl.Table(info.Name)
		if err != nil || len(table) != 1 {
			return data, err
		}
		number, _, _ := strings.Cut(table[0].Params, " ")
		if data, err = sysfs.ParseDev(number); err != nil {
			return data, fmt.Errorf("the table of %s: %w", info.Name, err)
		}
	}
}

// now asks what the device is, its table included.
func (m *mapped) now(ctx context.Context) (facts, error) {
	f := m.fixed
	id, err := block.IdentifyDev(m.source.Identity().Dev())
	if err != nil {
		return f, fmt.Errorf("track: %w", err)
	}
	status, err := m.Status(ctx)
	if err != nil {
		return f, fmt.Errorf("track: %w", err)
	}
	targets, info, err := m.ctl.Table(m.Name())
	if err != nil {
		return f, fmt.Errorf("track: %w", err)
	}
	if len(targets) == 1 {
		// META DATA SECTORS
		if words := strings.Fields(targets[0].Params); len(words) == 3 {
			data, err := sysfs.ParseDev(words[1])
			if err == nil {
				data, err = m.dataOf(data)
			}
			if err != nil {
				return f, fmt.Errorf("track: %w", err)
			}
			f.Meta, f.Data = words[0], data.String()
		}
	}
	f.UUID, f.Size, f.Discards = info.UUID, id.Size, status.Discards
	f.Activation.DiskSeq, f.Activation.Number = id.DiskSeq, m.Number().String()
	f.takesDiscards = !status.DiscardsDisabled
	f.free = status.TotalMetadataBlocks - status.UsedMetadataBlocks
	// queue/iostats says only in newer kernels whether the kernel counts; 6.1 counts
	// where it is 0.
	_, err = m.source.Counters()
	f.noStatistics = errors.Is(err, block.ErrNoCounters)
	if err != nil && !f.noStatistics {
		return f, fmt.Errorf("track: %w", err)
	}
	return f, nil
}

func (m *mapped) drain(ctx context.Context) error {
	if _, err := m.Drain(ctx); err != nil {
		return fmt.Errorf("track: %w", err)
	}
	return nil
}

// Another process holds a snapshot for as long as it takes to read it, or for the last
// part of a mirror.
const (
	heldWait = 10 * time.Second
	heldPoll = 50 * time.Millisecond
)

// prepare waits for another process that has the snapshot.
func (m *mapped) prepare(ctx context.Context) error {
	patience := time.NewTimer(heldWait)
	defer patience.Stop()
	again := time.NewTicker(heldPoll)
	defer again.Stop()
	for {
		err := m.Prepare(ctx)
		if !errors.Is(err, dmera.ErrHeld) {
			return err
		}
		select {
		case <-again.C:
		case <-patience.C:
			return err
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		}
	}
}

func (m *mapped) take(ctx context.Context) (snapshot, error) {
	if err := m.prepare(ctx); err != nil {
		return nil, fmt.Errorf("track: %w", err)
	}
	s, err := m.TakeSnapshot(ctx)
	if err != nil {
		return nil, fmt.Errorf("track: %w", err)
	}
	return &heldMetadata{s}, nil
}

func (m *mapped) Close() error {
	var err error
	if m.Device != nil {
		err = m.Device.Close()
	}
	return errors.Join(err, m.ctl.Close())
}

// heldMetadata is a metadata snapshot in the kernel.
type heldMetadata struct{ *dmera.Snapshot }

func (s *heldMetadata) identity() string { return s.Metadata().Superblock().Identity.String() }

func (s *heldMetadata) eras(ascending []era.Block) ([]era.Era, error) {
	eras, err := s.Metadata().Eras(ascending)
	if err == nil {
		err = s.Metadata().Recheck()
	}
	return eras, err
}
