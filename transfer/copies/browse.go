package copies

import (
	"context"
	"fmt"
	"os"

	"tidemark/transfer/browse"
	"tidemark/transfer/inuse"
	"tidemark/transfer/names"
	"tidemark/transfer/restore"
	"tidemark/transfer/target"
)

// Browse shows the files of the mirror, image or device at image on the folder dir, all
// partitions or that of the given number alone, until browse.Unmount. A mirror with an
// update that waits is finished first. An image that others write to is refused. The error
// wraps inuse.ErrInUse, target.ErrIncomplete, target.ErrPending, or is one of package browse.
func Browse(ctx context.Context, image, dir string, partition int, o Options) ([]browse.Shown, error) {
	image, err := names.Noted(ctx, image, o.note)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(image); err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	if _, err := target.Settle(ctx, image, o.StateDir, true, o.note); err != nil {
		return nil, err
	}
	if err := restore.RefuseHalf(image, o.StateDir); err != nil {
		return nil, err
	}
	t, err := target.Find(image, o.StateDir)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	// Until it is mounted: a run refuses what is.
	if err := t.Lock(false); err != nil {
		return nil, err
	}
	if err := inuse.Changing(t.Path); err != nil {
		return nil, err
	}
	return browse.Mount(ctx, t.Path, dir, browse.Options{Partition: partition, Note: func(text string) { o.note("%s", text) }})
}
