package pairs

import (
	"context"
	"errors"
	"fmt"

	"tidemark/transfer/mirror"
	"tidemark/transfer/names"
	"tidemark/transfer/restore"
	"tidemark/transfer/target"
	"tidemark/transfer/transaction"
	"tidemark/words"
)

// Recover brings to an end what a crash left of an update of the mirror at path, without
// its source, and says in words what it did. An update that was committed is finished;
// with discard it is forgotten: the target stays as it is, which may be between old and
// new, and the mirror counts as one whose first copy has not ended. Where nothing waits
// nothing is done, but with discard a first copy that has not ended is forgotten, and with
// it that there was a mirror. The error wraps target.ErrNoMirror, inuse.ErrInUse, or is one of packages
// state, sums, redo and transaction.
func Recover(ctx context.Context, path string, discard bool, o Options) (string, error) {
	path, err := names.Noted(ctx, path, o.withDefaults().note)
	if err != nil {
		return "", err
	}
	t, err := target.Find(path, o.StateDir)
	if err != nil {
		return "", err
	}
	defer t.Close()
	if err := t.Lock(false); err != nil {
		return "", err
	}
	if _, cutOff, _ := restore.Unfinished(t.Folder); cutOff { // of another's damage the others tell
		return restore.Recover(t, discard)
	}
	known, err := t.Known()
	switch {
	case discard && (err == nil || target.CannotBeUsed(err) && !errors.Is(err, transaction.ErrOtherOwner)):
		return forget(t, known)
	case err != nil:
		return "", err
	case known.Pending:
		return t.Finish()
	case !known.Complete:
		return fmt.Sprintf("nothing waits to be finished: its first copy has not ended, and goes on with the next run (%s of %s)", words.Size(known.Copied), words.Size(known.Size)), ctx.Err()
	}
	return "nothing waits to be finished: it is a copy of " + words.Time(known.Time), ctx.Err()
}

// forget forgets what waits for the target, or else a first copy that has not ended.
func forget(t *target.Target, known target.Known) (string, error) {
	waits, err := transaction.Pending(t.Dir)
	switch {
	case err != nil:
	case waits:
		if err = mirror.Discard(t.Dir); err == nil {
			return "discarded a change that was committed: it may be between two copies, and counts as not copied", nil
		}
	case known.Complete:
		return "nothing waits to be discarded: it is a copy of " + words.Time(known.Time), nil
	default:
		if err = t.Forget(); err == nil {
			return fmt.Sprintf("forgot a first copy that had not ended (%s of %s): it is no mirror any more", words.Size(known.Copied), words.Size(known.Size)), nil
		}
	}
	return "", fmt.Errorf("target: %s: %w", t.Path, err)
}
