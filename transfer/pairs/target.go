package pairs

import (
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
	"tidemark/format/state"
	"tidemark/linux/atomicfile"
	"tidemark/transfer/mirror"
	"tidemark/transfer/restore"
	"tidemark/transfer/transaction"
	"tidemark/view"
)

const folderEnd = ".tidemark" // of the folder beside an image

// target is where a mirror goes.
type target struct {
	name   string // as given, for messages
	path   string // absolute and without symbolic links
	folder string
	exists bool
	device bool
	size   int64          // bytes, when it was found
	id     block.Identity // of a device
	info   fs.FileInfo    // of an image; nil when there was none

	state    state.State // what is known of it; zero where nothing is
	stateErr error       // why nothing is known; wraps ErrNoMirror where there never was anything
	pending  bool        // an update that was committed waits to be finished
	blank    bool        // an image of the right size, of which nothing is known, that is one hole
	is       disposition
	forced   string  // what Overwrite does away with
	sampled  *sample // what Adopt found, nil where it was not asked
	vague    []trace // of a target that looks otherwise than the last run left it
	freezes  bool    // its folder lies on a filesystem of the sources

	made  bool // with its folder, by this run
	disk  *block.Device
	dir   *transaction.Dir
	store *mirror.Store
}

// disposition says what a target is to the source of its pair.
type disposition int

const (
	unjudged disposition = iota
	// fresh is a target without content: an image that is missing, empty or a hole.
	fresh
	// foreign is a target with content of which nothing is known.
	foreign
	// gone is the empty or missing image of a mirror that had content.
	gone
	// unusable is a target of which the state cannot be used.
	unusable
	// restarts is a first copy that cannot go on: its source is another, or has another
	// size by now.
	restarts
	// unfinished is a first copy that goes on.
	unfinished
	// ours is a complete mirror of the source.
	ours
	// otherOrigin is a complete mirror of another source.
	otherOrigin
)

// begins reports whether a mirror has to be made.
func (d disposition) begins() bool { return d != unjudged && d < unfinished }

// empty reports whether a target has no content yet.
func (t *target) empty() bool { return !t.device && (t.size == 0 || t.blank) }

// Place is where a target and what is kept beside it lie.
type Place struct {
	Path   string // of the target, absolute and without symbolic links
	Folder string
	Exists bool // the target
	Device bool
}

// Find returns where the target at path, which need not exist, and its folder lie.
// It makes nothing. stateDir is DefaultStateDir when empty.
func Find(path, stateDir string) (Place, error) {
	t, err := findTarget(path, stateDir)
	if err != nil {
		return Place{}, err
	}
	return Place{Path: t.path, Folder: t.folder, Exists: t.exists, Device: t.device}, nil
}

// findTarget looks at what path is now.
func findTarget(path, stateDir string) (*target, error) {
	if stateDir == "" {
		stateDir = DefaultStateDir
	}
	if err := CheckPath(path); err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	t := &target{name: path, path: absolute(path)}
	info, err := os.Stat(t.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if to, err := os.Readlink(t.path); err == nil {
			return nil, fmt.Errorf("target: %s: it is a symbolic link to %s, where nothing is: name that, or remove the link", path, to)
		}
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
		t.folder, t.size, t.info = t.path+folderEnd, info.Size(), info
		return t, nil
	}
	t.device = true
	if t.id, err = block.Identify(t.path); err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	if t.size = t.id.Size; t.size == 0 {
		return nil, fmt.Errorf("target: %s: %w", path, ErrNoSize)
	}
	t.folder = deviceFolder(stateDir, t.id, t.path)
	return t, nil
}

// deviceFolder is where the files of a target lie that is a device: it is named after what
// the device is, where that is known.
func deviceFolder(stateDir string, id block.Identity, path string) string {
	name := stableName(id)
	if volatile(name) {
		name = "path=" + path
	}
	return filepath.Join(stateDir, "devices", hashed(name))
}

// owner is the name under which a tracker keeps the mirror's mark.
func (t *target) owner() string {
	if t.device {
		return stableName(t.id)
	}
	return t.path
}

// lock locks the folder of the target. A folder that does not exist is made where
// create says so, and otherwise left alone.
func (t *target) lock(create bool) error {
	if t.dir != nil {
		return nil
	}
	dir, err := transaction.OpenDir(t.folder, create)
	if !create && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	t.dir = dir
	return nil
}

// read reads what is known of the target.
func (t *target) read(src *source) (err error) {
	t.state, t.stateErr = readState(t.folder)
	if t.stateErr == nil {
		t.pending, err = mirror.PendingAfter(t.folder, t.state)
		t.pending = t.pending || err != nil // opening it finishes that, or says why not
		return nil
	}
	if errors.Is(t.stateErr, ErrNoMirror) {
		_, t.stateErr = t.known()
	}
	t.blank, err = t.isHole(src)
	return err
}

// isHole reports whether an image of the size of its source, of which nothing is known,
// holds nothing.
func (t *target) isHole(src *source) (bool, error) {
	if !t.exists || t.device || t.size == 0 || t.size != src.Size() || !errors.Is(t.stateErr, ErrNoMirror) {
		return false, nil
	}
	d, err := block.Open(t.path, block.Options{})
	if err != nil {
		return false, fmt.Errorf("target: %w", err)
	}
	defer d.Close()
	data, err := d.Data(extent.Extent{Len: d.Size()})
	return data.Empty(), err
}

// place refuses an image that lies on a filesystem of the sources, whose every copy
// would change what it copies, and finds out whether the folder does.
func (t *target) place(sources []*block.Device, o Options) error {
	covered, err := view.Covered(sources, t.path, t.folder)
	if err != nil {
		return err
	}
	if slices.Contains(covered, t.path) {
		return fmt.Errorf("target: %s: %w: each copy would change what it copies", t.name, ErrOwnSource)
	}
	if t.freezes = len(covered) > 0; t.freezes {
		o.note("%s: what is kept beside it, in %s, lies on a filesystem of the source: each run changes what it copies; give a folder on another disk with --state-dir", t.path, t.folder)
	}
	return nil
}

// open opens the mirror, or makes one. What it opened is closed by close, also
// after an error.
func (t *target) open(src *source, granularity int64, o Options) (*mirror.Sink, error) {
	locked := t.dir != nil
	for _, again := range []func() error{func() error { return t.refuseUsed(nil) }, t.refuseOpeners} { // starting to track may have taken long
		if err := again(); err != nil {
			return nil, err
		}
	}
	t.made = !t.exists && !locked
	if err := t.openDisk(src.Size()); err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	if err := t.lock(true); err != nil {
		return nil, err
	}
	t.dir.LeaveRoom = t.freezes
	// Before the lock another run may have made it a mirror, or somebody filled it.
	if size := t.disk.Size(); !locked || size != t.size {
		t.size = size
		if err := t.rejudge(src, o); err != nil {
			return nil, err
		}
	}
	if err := t.openStore(src, o); err != nil {
		return nil, err
	}
	if told := t.store.Recovered(); told != "" {
		o.note("%s: %s", t.path, told)
	}
	if text := t.told(src); text != "" {
		o.note("%s: %s", t.path, text)
	}
	if t.device && src.IsDevice() && t.is.begins() {
		o.note("%s: it becomes a device with the UUIDs of %s: what looks for one (fstab, GRUB) may take it at the next boot; detach it before, or have fstab name the original by /dev/disk/by-id", t.path, src.Path())
	}
	sink := &mirror.Sink{Store: t.store, Name: t.name, Origin: src.origin(), Other: t.is == otherOrigin, Refuse: t.guard(o)}
	if t.is.begins() {
		if err := restore.Forget(t.dir); err != nil {
			return nil, fmt.Errorf("target: %s: %w", t.path, err)
		}
		if err := t.store.Init(src.Size(), blockSize(granularity), src.origin(), !t.empty()); err != nil {
			return nil, fmt.Errorf("target: %s: %w", t.path, err)
		}
	}
	return sink, nil
}

// rejudge judges the target by what is known of it now. One with an update that waits is
// judged when that is finished.
func (t *target) rejudge(src *source, o Options) error {
	if err := t.read(src); err != nil {
		return err
	}
	if t.pending && !t.empty() {
		t.is = unjudged
		return nil
	}
	return t.judge(src, o)
}

// openStore opens what is known of the mirror, and judges the target again where that
// finished what a crash left.
func (t *target) openStore(src *source, o Options) (err error) {
	disk := transaction.Disk{Device: t.disk}
	if t.is == gone || t.is == unusable {
		t.store = mirror.New(disk, t.dir) // what a crash left to finish went with it
		return nil
	}
	t.store, err = mirror.Open(disk, t.dir)
	if err != nil && cannotBeUsed(err) && (o.Overwrite || o.Adopt && t.adopt(src, err) == nil) {
		t.is, t.store = unusable, mirror.New(disk, t.dir)
		return nil
	}
	if err != nil {
		return fmt.Errorf("target: %s: %w", t.path, err)
	}
	if !t.pending {
		return nil
	}
	t.state, t.size, t.pending = t.store.State(), t.disk.Size(), false
	return t.judge(src, o)
}

// told says in words what a target is to its source, "" where that goes without saying.
func (t *target) told(src *source) string {
	var words []string
	if text := t.standingIn(src); text != "" {
		words = append(words, text)
	}
	if t.forced != "" {
		words = append(words, "overwriting it as forced to, though "+t.forced)
	}
	if t.sampled != nil {
		words = append(words, t.sampled.String())
	}
	return strings.Join(words, "; ")
}

func (t *target) standingIn(src *source) string {
	switch t.is {
	case gone:
		return "the image is gone: copying everything"
	case unusable:
		return "what was known of it is damaged: comparing it with the source"
	case foreign:
		return fmt.Sprintf("it exists, and is no mirror of %s: comparing them, and overwriting what differs", src.Path())
	case restarts:
		if sameOrigin(t.state.Source, src.origin()) {
			return "the source changed its size before the first copy ended: copying everything"
		}
		return fmt.Sprintf("it was to become a mirror of %s: comparing all of it", describe(t.state.Source))
	case otherOrigin:
		return fmt.Sprintf("it is a mirror of %s: comparing all of it", describe(t.state.Source))
	}
	return ""
}

// foretell tells what a run would do to the target. It only reads.
func (t *target) foretell(src *source, o Options) error {
	if t.exists && t.forced != "" && !t.empty() && t.size >= src.Size() {
		s, err := t.compare(src)
		if err != nil {
			return fmt.Errorf("target: %w", err)
		}
		t.sampled = &s
	}
	if text := t.told(src); text != "" {
		o.note("%s: %s", t.path, text)
	}
	if t.pending {
		o.note("%s: an update that was committed waits: a run finishes it first", t.path)
		return nil
	}
	if why, err := t.suspect(); err != nil {
		return fmt.Errorf("target: %w", err)
	} else if why != "" {
		text := ""
		for _, v := range t.vague {
			text = fmt.Sprintf(", or refuses it where %s was changed", v.what)
		}
		o.note("%s: %s: a run checks it against its checksums, and copies again what was changed%s", t.path, why, text)
	}
	return nil
}

// suspect tells in words why a target of which something is known may hold something else,
// "" when there is no sign of it.
func (t *target) suspect() (string, error) {
	if t.is != ours && t.is != unfinished || t.empty() || !t.state.Complete && t.state.Copied == 0 {
		return "", nil
	}
	d, err := block.Open(t.path, block.Options{})
	if err != nil {
		return "", err
	}
	defer d.Close()
	now, err := transaction.Disk{Device: d}.Stamp()
	return transaction.Stamp(t.state.Target).Differs(now), err
}

func (t *target) openDisk(size int64) (err error) {
	if !t.exists {
		if err := transaction.CreateImage(t.path, 0o600); err != nil {
			return err
		}
	}
	if t.disk, err = block.Open(t.path, block.Options{Write: true, Exclusive: true}); err != nil {
		if errors.Is(err, unix.EPERM) && immutable(t.path) {
			err = fmt.Errorf("%s: %w", t.path, ErrImmutable)
		}
		return err
	}
	if !t.isDisk() {
		return fmt.Errorf("%s: %w: it was replaced just now", t.path, ErrRefused)
	}
	if t.device && t.disk.Size() < size {
		return fmt.Errorf("%s: %w: it has %d bytes, the source has %d", t.path, ErrTooSmall, t.disk.Size(), size)
	}
	return nil
}

// immutable reports whether a file has an attribute that forbids to write to it.
func immutable(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BASIC_STATS, &st)
	return err == nil && st.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0
}

// isDisk reports whether what was opened is what was judged.
func (t *target) isDisk() bool {
	if t.device {
		return t.disk.Identity() == t.id
	}
	info, err := t.disk.File().Stat()
	return err == nil && (t.info == nil || os.SameFile(info, t.info))
}

// undo removes an image that this run has made, and its folder, where nothing was copied to
// it. The list of mirrors does not name it any more.
func (t *target) undo(stateDir string) error {
	if !t.made || t.disk == nil || t.dir == nil {
		return nil
	}
	if t.store != nil {
		if st := t.store.State(); st.Complete || st.Copied > 0 {
			return nil
		}
	}
	data, err := t.disk.Data(extent.Extent{Len: t.disk.Size()})
	if err != nil || !data.Empty() {
		return err
	}
	// Under the lock, so that nobody else has begun to use it.
	if !isAt(t.path, t.disk) {
		return nil
	}
	if err := errors.Join(os.Remove(t.path), t.forget(stateDir)); err != nil {
		return err
	}
	return errors.Join(t.dissolve(), atomicfile.SyncDir(filepath.Dir(t.path)))
}

// isAt reports whether a path leads to an open image.
func isAt(path string, disk *block.Device) bool {
	at, err := os.Stat(path)
	if err != nil {
		return false
	}
	open, err := disk.File().Stat()
	return err == nil && os.SameFile(at, open)
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
