package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"tidemark/extent"
	"tidemark/transfer/transaction"
)

// Create reads a stream to its end and makes a new image of it, which is sparse
// where the stream has nothing, or zeros. Until it returns nil there is no target,
// unless the error came after the target appeared; then the error says so. The
// errors are those of Apply, and that of Publish when there is a target by then.
func Create(ctx context.Context, place Place, r io.Reader, o Options) (rep Report, err error) {
	defer explain(&err)
	switch pending, err := transaction.Pending(place); {
	case err != nil:
		return rep, err
	case pending:
		return rep, fmt.Errorf("%w: it is gone", ErrPending)
	}
	f, err := place.Open(imageFile, true)
	if err != nil {
		return rep, err
	}
	rep, err = fillImage(ctx, f, r, o)
	if err = errors.Join(err, f.Close()); err == nil {
		err = place.Publish(imageFile)
	}
	if err != nil {
		rerr := place.Remove(imageFile)
		if errors.Is(rerr, fs.ErrNotExist) {
			rerr = nil
		}
		return rep, errors.Join(err, rerr)
	}
	rep.Created = true
	return rep, nil
}

func fillImage(ctx context.Context, f transaction.File, r io.Reader, o Options) (Report, error) {
	rep, err := pump(ctx, r, o.limit(-1), imageSink{f}, o)
	if err != nil {
		return rep, err
	}
	rep.Size = o.sizeAfter(-1, rep.end)
	have, err := f.Size()
	if err != nil {
		return rep, err
	}
	if have < rep.Size {
		if _, err := f.WriteAt([]byte{0}, rep.Size-1); err != nil {
			return rep, err
		}
	}
	return rep, f.Sync()
}

// imageSink writes into an empty file, whose holes are zeros.
type imageSink struct{ f transaction.File }

func (i imageSink) Data(off int64, p []byte) error {
	_, err := i.f.WriteAt(p, off)
	return err
}

func (imageSink) Zero(extent.Extent) error { return nil }
