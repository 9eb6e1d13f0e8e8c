package pairs

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/zeebo/blake3"

	"tidemark/block"
	"tidemark/format/state"
	"tidemark/transfer/mirror"
	"tidemark/transfer/transaction"
)

const (
	minBlock = state.MinBlock
	maxBlock = state.MaxBlock

	folderEnd = ".tidemark" // of the folder beside an image
)

// target is where a mirror goes.
type target struct {
	path   string // without symbolic links
	folder string
	exists bool
	device bool
	size   int64          // bytes of an image, when it was found
	id     block.Identity // of a device

	disk  *block.Device
	dir   *transaction.Dir
	store *mirror.Store
	// rebuild says that what is known of it is of no use.
	rebuild bool
	// foreign says that it holds something, and nothing is known of it.
	foreign bool
	// freezes says that it, or its folder, lies on a filesystem of the sources.
	freezes bool
	// stranger says that it is the mirror of another source, to be overwritten:
	// what changed since its mark says nothing about this source.
	stranger bool
}

// empty reports whether a target has no content yet.
func (t *target) empty() bool { return !t.device && t.size == 0 }

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
		t.folder, t.size = t.path+folderEnd, info.Size()
		return t, nil
	}
	t.device = true
	if t.id, err = block.Identify(t.path); err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	name := stableName(t.id)
	if volatile(name) {
		name = "path=" + t.path
	}
	sum := blake3.Sum256([]byte(name))
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

// open opens the mirror, or makes one. What it opened is closed by close, also
// after an error.
func (t *target) open(src *source, granularity int64, o Options) error {
	if err := t.openDisk(src.Size()); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	empty := !t.device && t.disk.Size() == 0
	var err error
	if t.dir, err = transaction.OpenDir(t.folder, true); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	t.dir.LeaveRoom = t.freezes
	if err := t.openStore(o, empty); err != nil {
		return fmt.Errorf("target: %s: %w", t.path, err)
	}
	if told := t.store.Recovered(); told != "" {
		o.note("%s: %s", t.path, told)
	}
	st := t.store.State()
	if t.store.Exists() { // and may be another's than before it was locked and recovered
		if err := t.judge(src, st, o.Overwrite); err != nil {
			return err
		}
	}
	switch {
	case t.foreign && !t.store.Exists():
		o.note("%s: it exists, and is no mirror of %s: comparing them, and overwriting what differs", t.path, src.Path())
	case !t.store.Exists():
	case !st.Complete && t.stranger:
		o.note("%s: it was to become a mirror of %s: comparing all of it", t.path, describe(st.Source))
	case !st.Complete && st.Size != src.Size():
		o.note("%s: the source changed its size before the first copy ended: copying everything", t.path)
	case t.stranger:
		o.note("%s: it is a mirror of %s: comparing all of it", t.path, describe(st.Source))
		return nil
	default:
		return nil
	}
	if err := t.store.Init(src.Size(), blockSize(granularity), src.origin(), !empty); err != nil {
		return fmt.Errorf("target: %s: %w", t.path, err)
	}
	return nil
}

// openStore opens what is known of the mirror; what is spoilt is forgotten only
// when told to overwrite.
func (t *target) openStore(o Options, gone bool) (err error) {
	disk := transaction.Disk{Device: t.disk}
	if st, stErr := readState(t.folder); gone && stErr == nil && st.Size > 0 && (st.Complete || st.Copied > 0) {
		o.note("%s: the image is gone: copying everything", t.path)
		t.store = mirror.New(disk, t.dir) // what a crash left to finish went with it
		return nil
	}
	if !t.rebuild {
		t.store, err = mirror.Open(disk, t.dir)
	}
	if err != nil && !(o.Overwrite && spoilt(err)) {
		return err
	}
	if t.rebuild || err != nil {
		o.note("%s: what was known of it is damaged: comparing it with the source", t.path)
		t.store = mirror.New(disk, t.dir)
	}
	return nil
}

func (t *target) openDisk(size int64) (err error) {
	if !t.exists {
		if err := transaction.CreateImage(t.path, 0o600); err != nil {
			return err
		}
	}
	if t.disk, err = block.Open(t.path, block.Options{Write: true, Exclusive: true}); err != nil {
		return err
	}
	if t.device && t.disk.Size() < size {
		return fmt.Errorf("%s: %w: it has %d bytes, the source has %d", t.path, ErrTooSmall, t.disk.Size(), size)
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
