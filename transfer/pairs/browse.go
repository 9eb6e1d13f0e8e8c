package pairs

import (
	"context"

	"tidemark/transfer/browse"
	"tidemark/transfer/inuse"
)

// Browse shows the files of the mirror, image or device at image on the folder dir, all
// partitions or that of the given number alone, until browse.Unmount. A mirror with an
// update that waits is finished first. An image that others write to is refused. The error
// wraps inuse.ErrInUse, ErrIncomplete, ErrPending, or is one of package browse.
func Browse(ctx context.Context, image, dir string, partition int, o Options) ([]browse.Shown, error) {
	o = o.withDefaults()
	image, err := o.target(ctx, image)
	if err != nil {
		return nil, err
	}
	if _, err := settle(ctx, image, true, o); err != nil {
		return nil, err
	}
	if err := refuseHalfRestored(image, o.StateDir); err != nil {
		return nil, err
	}
	t, err := findTarget(image, o.StateDir)
	if err != nil {
		return nil, err
	}
	defer t.close()
	// Until it is mounted: a run refuses what is.
	if err := t.lock(false); err != nil {
		return nil, err
	}
	if err := inuse.Changing(t.path); err != nil {
		return nil, err
	}
	return browse.Mount(ctx, t.path, dir, browse.Options{Partition: partition, Note: func(text string) { o.note("%s", text) }})
}
