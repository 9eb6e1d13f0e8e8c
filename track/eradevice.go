package track

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/era"
	"tidemark/linux/dm"
	"tidemark/linux/dmera"
)

// eraKernel is what an Era asks of the kernel.
type eraKernel interface {
	eraSource
	blockSize() int64
	metaPath() string
	now(ctx context.Context) (eraFacts, error)
	// prepare does beforehand what take would have to write files for; unprepare
	// takes it back.
	prepare(ctx context.Context) error
	unprepare() error
	take(ctx context.Context) (eraSnapshot, error)
	flush() error // what was written survives a power cut
	// drain returns when no write from before it is in flight.
	drain(ctx context.Context) error
	Close() error
}

// eraSource is the content of the era device.
type eraSource interface {
	io.ReaderAt
	size() int64 // bytes, when it was opened
}

// eraSnapshot is held metadata.
type eraSnapshot interface {
	era() uint64      // that began with it
	identity() string // of the metadata; "" when it has none
	changed(ctx context.Context, since uint64) (extent.Set, error)
	eras(ascending []era.Block) ([]era.Era, error)
	retake(ctx context.Context) error // the same, but of now; writes no file
	Close() error
}

// mapped is a device of the kernel's device-mapper.
type mapped struct {
	ctl    *dm.Control
	dev    *dmera.Device
	source *block.Device
	fixed  eraFacts // that need not be asked again
}

func openMapped(path string, o EraOptions) (*mapped, error) {
	ctl, err := dm.Open()
	if err != nil {
		return nil, fmt.Errorf("track: %w", err)
	}
	m := &mapped{ctl: ctl}
	if err := m.open(path, o); err != nil {
		return nil, errors.Join(fmt.Errorf("track: %w", err), m.Close())
	}
	return m, nil
}

func (m *mapped) open(path string, o EraOptions) (err error) {
	m.dev, err = dmera.Open(m.ctl, path, dmera.Options{RunDir: o.RunDir, StateDir: o.StateDir})
	if errors.Is(err, dm.ErrNotFound) {
		return fmt.Errorf("%s: %w: %w", path, dmera.ErrNotEra, err)
	}
	if err != nil {
		return err
	}
	if m.source, err = block.Open(path, block.Options{Direct: true}); err != nil {
		return err
	}
	m.fixed = eraFacts{
		Name: m.dev.Name(), BlockSize: m.dev.BlockSize(),
		MetaName: o.StableName(m.dev.MetaPath()), DataName: o.StableName(m.dev.DataPath()),
	}
	if m.fixed.forgetful, err = forgetful(); err != nil {
		return err
	}
	if m.fixed.Activation.Boot, err = bootID(); err != nil {
		return err
	}
	// It writes a file: not in now, which is asked under a freeze.
	m.fixed.gap, err = m.dev.NoteGaps(context.Background())
	return err
}

// forgetful reports whether this kernel is older than 5.12, which archives the
// writeset of a device that was not closed ("dm era: Recover committed writeset
// after crash"). Fixed stable kernels cannot be told by name.
func forgetful() (bool, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false, fmt.Errorf("uname: %w", err)
	}
	var major, minor int
	release := unix.ByteSliceToString(u.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return false, fmt.Errorf("kernel release %q: %w", release, err)
	}
	return major < 5 || major == 5 && minor < 12, nil
}

func (m *mapped) size() int64      { return m.dev.Size() }
func (m *mapped) blockSize() int64 { return m.dev.BlockSize() }
func (m *mapped) metaPath() string { return m.dev.MetaPath() }

func (m *mapped) ReadAt(p []byte, off int64) (int, error) { return m.source.ReadAt(p, off) }

func (m *mapped) flush() error { return m.source.Sync() }

// now asks what the device is, its table included.
func (m *mapped) now(ctx context.Context) (eraFacts, error) {
	f := m.fixed
	id, err := block.Identify(m.source.Path())
	if err != nil {
		return f, fmt.Errorf("track: %w", err)
	}
	status, err := m.dev.Status(ctx)
	if err != nil {
		return f, fmt.Errorf("track: %w", err)
	}
	targets, info, err := m.ctl.Table(m.dev.Name())
	if err != nil {
		return f, fmt.Errorf("track: %w", err)
	}
	if len(targets) == 1 {
		// META DATA SECTORS
		if words := strings.Fields(targets[0].Params); len(words) == 3 {
			f.Meta, f.Data = words[0], words[1]
		}
	}
	f.UUID, f.Size, f.Discards = info.UUID, id.Size, status.Discards
	f.Activation.DiskSeq, f.Activation.Number = id.DiskSeq, m.dev.Number().String()
	f.takesDiscards = !status.DiscardsDisabled
	f.free = status.TotalMetadataBlocks - status.UsedMetadataBlocks
	counts, err := m.counts(id.Disk)
	f.noStatistics = !counts
	return f, err
}

// counts reports whether the kernel counts what is done to the device, by reading
// from it: queue/iostats says so only in newer kernels, 6.1 counts where it is 0.
func (m *mapped) counts(disk string) (bool, error) {
	before, err := sectorsRead(disk)
	if err != nil {
		return false, err
	}
	if _, err := m.source.ReadAt(block.AlignedBuffer(witnessBytes), 0); err != nil {
		return false, fmt.Errorf("track: %w", err)
	}
	after, err := sectorsRead(disk)
	return after != before, err
}

// sectorsRead returns how much was read from a disk (Documentation/block/stat.rst).
func sectorsRead(disk string) (string, error) {
	raw, err := os.ReadFile(filepath.Join("/sys/block", disk, "stat"))
	if err != nil {
		return "", fmt.Errorf("track: %w", err)
	}
	words := strings.Fields(string(raw))
	if len(words) < 3 {
		return "", fmt.Errorf("track: statistics of %s: %q", disk, raw)
	}
	return words[2], nil
}

// drain suspends the device for a moment: that waits for every write, whether it came
// through a filesystem or not.
func (m *mapped) drain(ctx context.Context) error {
	if _, err := m.dev.Drain(ctx); err != nil {
		return fmt.Errorf("track: %w", err)
	}
	return nil
}

// Another process holds a snapshot for as long as it takes to read it, or for the
// last part of a mirror.
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
		err := m.dev.Prepare(ctx)
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

func (m *mapped) unprepare() error { return m.dev.Unprepare() }

func (m *mapped) take(ctx context.Context) (eraSnapshot, error) {
	if err := m.prepare(ctx); err != nil {
		return nil, fmt.Errorf("track: %w", err)
	}
	s, err := m.dev.TakeSnapshot(ctx)
	if err != nil {
		return nil, fmt.Errorf("track: %w", err)
	}
	return &heldMetadata{s}, nil
}

func (m *mapped) Close() error {
	var errs []error
	if m.source != nil {
		errs = append(errs, m.source.Close())
	}
	if m.dev != nil {
		errs = append(errs, m.dev.Close())
	}
	return errors.Join(append(errs, m.ctl.Close())...)
}

// heldMetadata is a metadata snapshot in the kernel.
type heldMetadata struct{ *dmera.Snapshot }

func (s *heldMetadata) era() uint64 { return uint64(s.Era()) }

func (s *heldMetadata) identity() string { return s.Metadata().Superblock().Identity.String() }

func (s *heldMetadata) changed(ctx context.Context, since uint64) (extent.Set, error) {
	return s.Changed(ctx, era.Era(since))
}

func (s *heldMetadata) eras(ascending []era.Block) ([]era.Era, error) {
	eras, err := s.Metadata().Eras(ascending)
	if err == nil {
		err = s.Metadata().Recheck()
	}
	return eras, err
}

func (s *heldMetadata) retake(ctx context.Context) error { return s.Retake(ctx) }
