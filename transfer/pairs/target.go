package pairs

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/zeebo/blake3"

	"tidemark/block"
	"tidemark/format/sidecar"
	"tidemark/linux/mounts"
	"tidemark/transfer/mirror"
)

const (
	minBlock = sidecar.MinBlock
	maxBlock = sidecar.MaxBlock

	folderEnd = ".tidemark" // of the folder beside an image
	stateFile = "state"     // in it
)

// target is where a mirror goes.
type target struct {
	path   string // without symbolic links
	folder string
	exists bool
	device bool
	id     block.Identity // of a device

	disk  *block.Device
	dir   *mirror.Dir
	store *mirror.Store
	blank bool // it was made just now
}

// findTarget looks at what path is now.
func findTarget(path, stateDir string) (*target, error) {
	t := &target{path: absolute(path)}
	info, err := os.Stat(t.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		t.folder = t.path + folderEnd
		return t, nil
	case err != nil:
		return nil, fmt.Errorf("target: %w", err)
	}
	t.exists = true
	if info.Mode().Type() != os.ModeDevice {
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("target: %s: %w", path, block.ErrUnsupportedFile)
		}
		t.folder = t.path + folderEnd
		return t, nil
	}
	t.device = true
	if t.id, err = block.Identify(t.path); err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	sum := blake3.Sum256([]byte(stableName(t.id)))
	t.folder = filepath.Join(stateDir, "devices", hex.EncodeToString(sum[:8]))
	return t, nil
}

// owner is the name under which a tracker keeps the mirror's mark.
func (t *target) owner() string {
	if t.device {
		return stableName(t.id)
	}
	return t.path
}

// refuse returns an error wrapping ErrRefused when the target must not be
// written to.
func (t *target) refuse(sources []*source, overwrite bool) error {
	if !t.exists {
		return nil
	}
	table, err := mounts.Read()
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	for _, src := range sources {
		if same, err := t.reaches(src, table); err != nil {
			return fmt.Errorf("target: %w", err)
		} else if same {
			return fmt.Errorf("target: %s: %w: it is the source, or lies on it", t.path, ErrRefused)
		}
	}
	use, err := table.UseOf(t.path)
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	if use.InUse() {
		return fmt.Errorf("target: %s: %w: it is in use (%s)", t.path, ErrRefused, use)
	}
	if !t.device || overwrite || t.known() {
		return nil
	}
	return t.refuseContent()
}

// reaches reports whether a write to the target is a write to the source: they
// are the same, or the target is a device that is made of the source.
func (t *target) reaches(src *source, table *mounts.Table) (bool, error) {
	if !t.device {
		a, err := src.File().Stat()
		if err != nil {
			return false, err
		}
		b, err := os.Stat(t.path)
		return err == nil && os.SameFile(a, b), err
	}
	if src.IsDevice() && overlaps(src.id, t.id) {
		return true, nil
	}
	use, err := table.UseOf(src.Path())
	return slices.Contains(use.Holders, t.id.Disk), err
}

// known reports whether the device is a mirror of ours already, so that what it
// holds is a copy.
func (t *target) known() bool {
	_, err := os.Stat(filepath.Join(t.folder, stateFile))
	return err == nil
}

func (t *target) refuseContent() error {
	d, err := block.Open(t.path, block.Options{})
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	defer d.Close()
	found, err := mounts.Probe(d, d.Size())
	if err != nil {
		return fmt.Errorf("target: %s: %w", t.path, err)
	}
	if len(found) > 0 {
		return fmt.Errorf("target: %s: %w: it holds %s", t.path, ErrRefused, found[0])
	}
	return nil
}

// open opens the mirror, or makes one. What it opened is closed by close, also
// after an error.
func (t *target) open(src *source, granularity int64, o Options) error {
	if err := t.openDisk(src.Size()); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	var err error
	if t.dir, err = mirror.OpenDir(t.folder, true); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	if t.store, err = mirror.Open(mirror.Disk{Device: t.disk}, t.dir); err != nil {
		return fmt.Errorf("target: %s: %w", t.path, err)
	}
	if told := t.store.Recovered(); told != "" {
		o.note("%s: %s", t.path, told)
	}
	st := t.store.State()
	empty := !t.device && t.disk.Size() == 0
	switch {
	case !t.store.Exists():
	case empty && st.Size > 0 && (st.Complete || st.Copied > 0):
		o.note("%s: the image is gone: copying everything", t.path)
	case !st.Complete && st.Size != src.Size():
		o.note("%s: the source changed its size before the first copy ended: copying everything", t.path)
	default:
		return nil
	}
	t.blank = empty
	if err := t.store.Init(src.Size(), blockSize(granularity), src.origin(), !empty); err != nil {
		return fmt.Errorf("target: %s: %w", t.path, err)
	}
	return nil
}

func (t *target) openDisk(size int64) (err error) {
	if !t.exists {
		f, err := os.OpenFile(t.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	if t.disk, err = block.Open(t.path, block.Options{Write: true, Direct: true, Exclusive: true}); err != nil {
		return err
	}
	if t.device && t.disk.Size() < size {
		return fmt.Errorf("%s has %d bytes, the source has %d", t.path, t.disk.Size(), size)
	}
	return nil
}

func (t *target) close() error {
	var errs []error
	if t.store != nil {
		errs = append(errs, t.store.Close())
	}
	if t.dir != nil {
		errs = append(errs, t.dir.Close())
	}
	if t.disk != nil {
		errs = append(errs, t.disk.Close())
	}
	return errors.Join(errs...)
}
