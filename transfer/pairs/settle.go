package pairs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dustin/go-humanize"

	"tidemark/format/state"
	"tidemark/linux/sysfs"
	"tidemark/transfer/mirror"
	"tidemark/transfer/restore"
	"tidemark/transfer/transaction"
)

// ErrIncomplete says that the first copy to a mirror has not ended.
var ErrIncomplete = errors.New("its first copy has not ended")

// settle looks at path before it is used as a source, and returns what is known of it as
// a mirror: nothing (the ID is zero) where it is none. The image or device of a mirror whose
// first copy has not ended is no copy of anything (ErrIncomplete), and one with an update
// that waits may be between two copies: with finish that is finished, and told, and
// otherwise it is ErrPending. So is that of a stream of "era apply", and what waits for
// the file behind a loop device: that is in use.
func settle(ctx context.Context, path string, finish bool, o Options) (Known, error) {
	o = o.withDefaults()
	t, err := findTarget(path, o.StateDir)
	if err != nil || !t.exists {
		return Known{}, err
	}
	defer t.close()
	if file := t.behind(); file != "" {
		if _, err := settle(ctx, file, false, o); err != nil {
			return Known{}, fmt.Errorf("%s lies in %w", path, err)
		}
	}
	known, err := t.known()
	if err == nil && known.Pending && finish {
		var told string
		if told, err = t.recover(o); err == nil {
			o.note("%s: %s", path, told)
			known, err = t.known()
		}
	}
	switch {
	case errors.Is(err, ErrNoMirror):
		return Known{}, nil
	case err != nil:
		return Known{}, err
	case known.Pending:
		return known, fmt.Errorf("%s: %w: it may be between two copies", path, ErrPending)
	case !known.Complete:
		return known, fmt.Errorf("%s: %w: it is no copy of anything (what is known of it lies in %s)", path, ErrIncomplete, t.folder)
	}
	return known, ctx.Err()
}

// behind returns the file behind a loop device, or behind the one that it is a part of,
// "" where there is none.
func (t *target) behind() string {
	if !t.device {
		return ""
	}
	file, err := sysfs.Text(filepath.Join(sysfs.DiskDir(t.id.Disk), "loop", "backing_file"))
	if info, serr := os.Stat(file); err != nil || serr != nil || !info.Mode().IsRegular() {
		return ""
	}
	return file
}

// known is what the folder of a target tells. Where it tells nothing of a mirror, what
// waits in it is another owner's, or that of a mirror whose state was lost.
func (t *target) known() (Known, error) {
	k, err := knownIn(t.folder, t.path)
	if !errors.Is(err, ErrNoMirror) {
		return k, err
	}
	lost, jerr := mirror.PendingAfter(t.folder, state.State{})
	switch {
	case lost:
		err = fmt.Errorf("%s: a committed journal without a state: %w", t.path, state.ErrDamaged)
	case jerr != nil:
		err = fmt.Errorf("%s: %w", t.path, jerr)
	}
	return k, err
}

// Recover brings to an end what a crash left of an update of the mirror at path, without
// its source, and says in words what it did. An update that was committed is finished;
// with discard it is forgotten: the target stays as it is, which may be between old and
// new, and the mirror counts as one whose first copy has not ended. Where nothing waits
// nothing is done, but with discard a first copy that has not ended is forgotten, and with
// it that there was a mirror. The error wraps ErrNoMirror, inuse.ErrInUse, or is one of packages
// state, sums, redo and transaction.
func Recover(ctx context.Context, path string, discard bool, o Options) (string, error) {
	o = o.withDefaults()
	path, err := o.target(ctx, path)
	if err != nil {
		return "", err
	}
	t, err := findTarget(path, o.StateDir)
	if err != nil {
		return "", err
	}
	defer t.close()
	if err := t.lock(false); err != nil {
		return "", err
	}
	if _, cutOff, _ := restore.Unfinished(t.folder); cutOff { // of another's damage the others tell
		return t.recoverRestore(discard)
	}
	known, err := t.known()
	switch {
	case discard && (err == nil || cannotBeUsed(err) && !errors.Is(err, transaction.ErrOtherOwner)):
		return t.discard(known, o.StateDir)
	case err != nil:
		return "", err
	case known.Pending:
		return t.recover(o)
	case !known.Complete:
		return fmt.Sprintf("nothing waits to be finished: its first copy has not ended, and goes on with the next run (%s of %s)", sized(known.Copied), sized(known.Size)), ctx.Err()
	}
	return "nothing waits to be finished: it is a copy of " + known.Time.Local().Format(timeFormat), ctx.Err()
}

// sized says a size with its unit.
func sized(n int64) string { return humanize.IBytes(uint64(n)) }

// exactly says a size with its unit and to the byte.
func exactly(n int64) string { return fmt.Sprintf("%s (%d bytes)", sized(n), n) }

// timeFormat is how people are told a time.
const timeFormat = "2006-01-02 15:04:05 MST"

// recover finishes what waits for the target.
func (t *target) recover(o Options) (string, error) {
	if err := t.refuseUsed(nil); err != nil {
		return "", err
	}
	if err := t.lock(false); err != nil {
		return "", err
	}
	if err := t.refuseOpeners(); err != nil {
		return "", err
	}
	if !t.exists {
		return "", fmt.Errorf("target: %s: %w: it is missing", t.path, transaction.ErrOther)
	}
	if err := t.openDisk(0); err != nil {
		return "", fmt.Errorf("target: %w", err)
	}
	store, err := mirror.Open(transaction.Disk{Device: t.disk}, t.dir)
	if err != nil {
		return "", fmt.Errorf("target: %s: %w", t.path, err)
	}
	t.store = store
	return strings.Join([]string{store.Recovered(), "it is the copy of " + store.State().Time.Local().Format(timeFormat)}, ": "), nil
}

// discard forgets what waits for the target, or else a first copy that has not ended.
func (t *target) discard(known Known, stateDir string) (string, error) {
	waits, err := transaction.Pending(t.dir)
	switch {
	case err != nil:
	case waits:
		if err = mirror.Discard(t.dir); err == nil {
			return "discarded a change that was committed: it may be between two copies, and counts as not copied", nil
		}
	case known.Complete:
		return "nothing waits to be discarded: it is a copy of " + known.Time.Local().Format(timeFormat), nil
	default:
		if err = t.forget(stateDir); err == nil {
			return fmt.Sprintf("forgot a first copy that had not ended (%s of %s): it is no mirror any more", sized(known.Copied), sized(known.Size)), nil
		}
	}
	return "", fmt.Errorf("target: %s: %w", t.path, err)
}
