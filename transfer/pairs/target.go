package pairs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/state"
	"tidemark/linux/atomicfile"
	"tidemark/track"
	"tidemark/transfer"
	"tidemark/transfer/mirror"
	"tidemark/transfer/origin"
	"tidemark/transfer/restore"
	"tidemark/transfer/target"
	"tidemark/transfer/traces"
	"tidemark/transfer/transaction"
	"tidemark/view"
)

// goal is the target of a pair, and what it is to its source.
type goal struct {
	*target.Target

	state    state.State // what is known of it; zero where nothing is
	stateErr error       // why nothing is known; wraps target.ErrNoMirror where there never was anything
	pending  bool        // an update that was committed waits to be finished
	blank    bool        // an image of the right size, of which nothing is known, that is one hole
	is       disposition
	forced   string         // what Overwrite does away with
	sampled  *sample        // what Adopt found, nil where it was not asked
	vague    []traces.Trace // of a target that looks otherwise than the last run left it
	inFreeze bool           // its folder lies on a filesystem of the sources

	made  bool // with its folder, by this run
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
func (t *goal) empty() bool { return !t.Device && (t.Size == 0 || t.blank) }

func (t *goal) id() string       { return t.Folder }
func (t *goal) name() string     { return t.Name }
func (t *goal) owner() string    { return t.Owner() }
func (t *goal) mark() track.Mark { return track.Mark(t.state.Mark) }
func (t *goal) freezes() bool    { return t.inFreeze }

// judge refuses a target that must not be written to, and otherwise finds out what it
// is to its source.
func (t *goal) judge(s *session, src *block.Device, sources []*block.Device) error {
	if err := t.RefuseUsed(sources...); err != nil {
		return err
	}
	if !s.dry {
		if err := t.Lock(false); err != nil {
			return err
		}
	}
	if err := t.RefuseOpeners(); err != nil {
		return err
	}
	if !s.dry {
		return t.rejudge(src, s.o)
	}
	if err := t.read(src); err != nil {
		return err
	}
	return t.decide(src, s.o)
}

// read reads what is known of the target.
func (t *goal) read(src *block.Device) (err error) {
	t.state, t.stateErr = target.ReadState(t.Folder)
	if t.stateErr == nil {
		t.pending, err = mirror.PendingAfter(t.Folder, t.state)
		t.pending = t.pending || err != nil // opening it finishes that, or says why not
		return nil
	}
	if errors.Is(t.stateErr, target.ErrNoMirror) {
		_, t.stateErr = t.Known()
	}
	t.blank, err = t.isHole(src)
	return err
}

// isHole reports whether an image of the size of its source, of which nothing is known,
// holds nothing.
func (t *goal) isHole(src *block.Device) (bool, error) {
	if !t.Exists || t.Device || t.Size == 0 || t.Size != src.Size() || !errors.Is(t.stateErr, target.ErrNoMirror) {
		return false, nil
	}
	d, err := block.Open(t.Path, block.Options{})
	if err != nil {
		return false, fmt.Errorf("target: %w", err)
	}
	defer d.Close()
	data, err := d.Data(extent.Extent{Len: d.Size()})
	return data.Empty(), err
}

// place refuses an image that lies on a filesystem of the sources, whose every copy
// would change what it copies, and finds out whether the folder does.
func (t *goal) place(sources []*block.Device, o Options) error {
	covered, err := view.Covered(sources, t.Path, t.Folder)
	if err != nil {
		return err
	}
	if slices.Contains(covered, t.Path) {
		return fmt.Errorf("target: %s: %w: each copy would change what it copies", t.Name, ErrOwnSource)
	}
	if t.inFreeze = len(covered) > 0; t.inFreeze {
		o.note("%s: what is kept beside it, in %s, lies on a filesystem of the source: each run changes what it copies; give a folder on another disk with --state-dir", t.Path, t.Folder)
	}
	return nil
}

// open opens the mirror, or makes one. What it opened is closed by close, also
// after an error.
func (t *goal) open(_ context.Context, src *block.Device, granularity int64, o Options) (transfer.Sink, error) {
	sink, err := t.sink(src, granularity, o)
	if err != nil {
		return nil, err
	}
	if err := t.Register(); err != nil {
		o.note("%s: \"tidemark status\" will not list it: %v", t.Path, err)
	}
	return sink, nil
}

func (t *goal) sink(src *block.Device, granularity int64, o Options) (*mirror.Sink, error) {
	locked := t.Dir != nil
	for _, again := range []func() error{func() error { return t.RefuseUsed() }, t.RefuseOpeners} { // starting to track may have taken long
		if err := again(); err != nil {
			return nil, err
		}
	}
	t.made = !t.Exists && !locked
	if err := t.Open(src.Size()); err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	if err := t.Lock(true); err != nil {
		return nil, err
	}
	t.Dir.LeaveRoom = t.inFreeze
	// Before the lock another run may have made it a mirror, or somebody filled it.
	if size := t.Disk.Size(); !locked || size != t.Size {
		t.Size = size
		if err := t.rejudge(src, o); err != nil {
			return nil, err
		}
	}
	if err := t.openStore(src, o); err != nil {
		return nil, err
	}
	if told := t.store.Recovered(); told != "" {
		o.note("%s: %s", t.Path, told)
	}
	if text := t.told(src); text != "" {
		o.note("%s: %s", t.Path, text)
	}
	if t.Device && src.IsDevice() && t.is.begins() {
		o.note("%s: it becomes a device with the UUIDs of %s: what looks for one (fstab, GRUB) may take it at the next boot; detach it before, or have fstab name the original by /dev/disk/by-id", t.Path, src.Path())
	}
	sink := &mirror.Sink{Store: t.store, Name: t.Name, Origin: origin.OfDevice(src), Other: t.is == otherOrigin, Refuse: t.guard(o)}
	if t.is.begins() {
		if err := restore.Forget(t.Dir); err != nil {
			return nil, fmt.Errorf("target: %s: %w", t.Path, err)
		}
		if err := t.store.Init(src.Size(), blockSize(granularity), origin.OfDevice(src), !t.empty()); err != nil {
			return nil, fmt.Errorf("target: %s: %w", t.Path, err)
		}
	}
	return sink, nil
}

// rejudge judges the target by what is known of it now. One with an update that waits is
// judged when that is finished.
func (t *goal) rejudge(src *block.Device, o Options) error {
	if err := t.read(src); err != nil {
		return err
	}
	if t.pending && !t.empty() {
		t.is = unjudged
		return nil
	}
	return t.decide(src, o)
}

// openStore opens what is known of the mirror, and judges the target again where that
// finished what a crash left.
func (t *goal) openStore(src *block.Device, o Options) (err error) {
	disk := transaction.Disk{Device: t.Disk}
	if t.is == gone || t.is == unusable {
		t.store = mirror.New(disk, t.Dir) // what a crash left to finish went with it
		return nil
	}
	t.store, err = mirror.Open(disk, t.Dir)
	if err != nil && target.CannotBeUsed(err) && (o.Overwrite || o.Adopt && t.adopt(src, err) == nil) {
		t.is, t.store = unusable, mirror.New(disk, t.Dir)
		return nil
	}
	if err != nil {
		return fmt.Errorf("target: %s: %w", t.Path, err)
	}
	if !t.pending {
		return nil
	}
	t.state, t.Size, t.pending = t.store.State(), t.Disk.Size(), false
	return t.decide(src, o)
}

// told says in words what a target is to its source, "" where that goes without saying.
func (t *goal) told(src *block.Device) string {
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

func (t *goal) standingIn(src *block.Device) string {
	switch t.is {
	case gone:
		return "the image is gone: copying everything"
	case unusable:
		return "what was known of it is damaged: comparing it with the source"
	case foreign:
		return fmt.Sprintf("it exists, and is no mirror of %s: comparing them, and overwriting what differs", src.Path())
	case restarts:
		if origin.Same(t.state.Source, origin.OfDevice(src)) {
			return "the source changed its size before the first copy ended: copying everything"
		}
		return fmt.Sprintf("it was to become a mirror of %s: comparing all of it", origin.Describe(t.state.Source))
	case otherOrigin:
		return fmt.Sprintf("it is a mirror of %s: comparing all of it", origin.Describe(t.state.Source))
	}
	return ""
}

// have tells what open would find, or make, at the target.
func (t *goal) have(granularity int64) transfer.Have {
	if t.is.begins() {
		return transfer.Have{Block: blockSize(granularity), Compared: !t.empty()}
	}
	return (&mirror.Sink{State: t.state, Other: t.is == otherOrigin}).Have()
}

// blockSize is what a new mirror keeps a checksum of: a block of the tracker, or
// where that is no power of two the largest part of it that is one, within what the
// format allows.
func blockSize(granularity int64) int64 {
	return min(max(granularity&-granularity, state.MinBlock), state.MaxBlock)
}

func (t *goal) foretell(src *block.Device, granularity int64, o Options) (transfer.Have, error) {
	return t.have(granularity), t.warn(src, o)
}

// warn tells what a run would do to the target. It only reads.
func (t *goal) warn(src *block.Device, o Options) error {
	if t.Exists && t.forced != "" && !t.empty() && t.Size >= src.Size() {
		s, err := t.compare(src)
		if err != nil {
			return fmt.Errorf("target: %w", err)
		}
		t.sampled = &s
	}
	if text := t.told(src); text != "" {
		o.note("%s: %s", t.Path, text)
	}
	if t.pending {
		o.note("%s: an update that was committed waits: a run finishes it first", t.Path)
		return nil
	}
	if why, err := t.suspect(); err != nil {
		return fmt.Errorf("target: %w", err)
	} else if why != "" {
		text := ""
		for _, v := range t.vague {
			text = fmt.Sprintf(", or refuses it where %s was changed", v.What)
		}
		o.note("%s: %s: a run checks it against its checksums, and copies again what was changed%s", t.Path, why, text)
	}
	return nil
}

// suspect tells in words why a target of which something is known may hold something else,
// "" when there is no sign of it.
func (t *goal) suspect() (string, error) {
	if t.is != ours && t.is != unfinished || t.empty() || !t.state.Complete && t.state.Copied == 0 {
		return "", nil
	}
	d, err := block.Open(t.Path, block.Options{})
	if err != nil {
		return "", err
	}
	defer d.Close()
	now, err := transaction.Disk{Device: d}.Stamp()
	return transaction.Stamp(t.state.Target).Differs(now), err
}

// undo removes an image that this run has made, and its folder, where nothing was copied to
// it. The list of mirrors does not name it any more.
func (t *goal) undo() error {
	if !t.made || t.Disk == nil || t.Dir == nil {
		return nil
	}
	if t.store != nil {
		if st := t.store.State(); st.Complete || st.Copied > 0 {
			return nil
		}
	}
	data, err := t.Disk.Data(extent.Extent{Len: t.Disk.Size()})
	if err != nil || !data.Empty() {
		return err
	}
	// Under the lock, so that nobody else has begun to use it.
	if !t.IsThere() {
		return nil
	}
	if err := errors.Join(os.Remove(t.Path), t.Forget()); err != nil {
		return err
	}
	return errors.Join(t.Dissolve(), atomicfile.SyncDir(filepath.Dir(t.Path)))
}

func (t *goal) close() error {
	var err error
	if t.store != nil {
		err = t.store.Close()
	}
	return errors.Join(err, t.Close())
}
