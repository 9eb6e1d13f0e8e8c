package target

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"tidemark/format/state"
	"tidemark/linux/sysfs"
	"tidemark/transfer/mirror"
	"tidemark/transfer/transaction"
	"tidemark/words"
)

// Settle looks at path before it is used as a source, and returns what is known of it as
// a mirror: nothing (the ID is zero) where it is none. The image or device of a mirror whose
// first copy has not ended is no copy of anything (ErrIncomplete), and one with an update
// that waits may be between two copies: with finish that is finished, and told, and
// otherwise it is ErrPending. So is that of a stream of "era apply", and what waits for
// the file behind a loop device: that is in use.
func Settle(ctx context.Context, path, stateDir string, finish bool, note func(format string, args ...any)) (Known, error) {
	t, err := Find(path, stateDir)
	if err != nil || !t.Exists {
		return Known{}, err
	}
	defer t.Close()
	if file := t.behind(); file != "" {
		if _, err := Settle(ctx, file, stateDir, false, note); err != nil {
			return Known{}, fmt.Errorf("%s lies in %w", path, err)
		}
	}
	known, err := t.Known()
	if err == nil && known.Pending && finish {
		var told string
		if told, err = t.Finish(); err == nil {
			note("%s: %s", path, told)
			known, err = t.Known()
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
		return known, fmt.Errorf("%s: %w: it is no copy of anything (what is known of it lies in %s)", path, ErrIncomplete, t.Folder)
	}
	return known, ctx.Err()
}

// behind returns the file behind a loop device, or behind the one that it is a part of,
// "" where there is none.
func (t *Target) behind() string {
	if !t.Device {
		return ""
	}
	file, err := sysfs.Text(filepath.Join(sysfs.DiskDir(t.ID.Disk), "loop", "backing_file"))
	if info, serr := os.Stat(file); err != nil || serr != nil || !info.Mode().IsRegular() {
		return ""
	}
	return file
}

// Known is what the folder of a target tells. Where it tells nothing of a mirror, what
// waits in it is another owner's, or that of a mirror whose state was lost.
func (t *Target) Known() (Known, error) {
	k, err := KnownIn(t.Folder, t.Path)
	if !errors.Is(err, ErrNoMirror) {
		return k, err
	}
	lost, jerr := mirror.PendingAfter(t.Folder, state.State{})
	switch {
	case lost:
		err = fmt.Errorf("%s: a committed journal without a state: %w", t.Path, state.ErrDamaged)
	case jerr != nil:
		err = fmt.Errorf("%s: %w", t.Path, jerr)
	}
	return k, err
}

// Finish brings the update of a mirror that waits to the target, without the source, and
// says in words what it did.
func (t *Target) Finish() (did string, err error) {
	if err := t.RefuseUsed(); err != nil {
		return "", err
	}
	if err := t.Lock(false); err != nil {
		return "", err
	}
	if err := t.RefuseOpeners(); err != nil {
		return "", err
	}
	if !t.Exists {
		return "", fmt.Errorf("target: %s: %w: it is missing", t.Path, transaction.ErrOther)
	}
	if err := t.Open(0); err != nil {
		return "", fmt.Errorf("target: %w", err)
	}
	store, err := mirror.Open(transaction.Disk{Device: t.Disk}, t.Dir)
	if err != nil {
		return "", fmt.Errorf("target: %s: %w", t.Path, err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return store.Recovered() + ": it is the copy of " + words.Time(store.State().Time), nil
}
