package pairs

import (
	"context"
	"fmt"
	"strings"

	"tidemark/linux/mounts"
	"tidemark/transfer/browse"
)

// Browse shows the files of the mirror, image or device at image on the folder dir, all
// partitions or that of the given number alone, until browse.Unmount. A mirror with an
// update that waits is finished first. An image that others write to is refused. The error
// wraps ErrInUse, ErrIncomplete, ErrPending, or is one of package browse.
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
	if err := t.refuseWriters(); err != nil {
		return nil, err
	}
	return browse.Mount(ctx, t.path, dir, browse.Options{Partition: partition, Note: func(text string) { o.note("%s", text) }})
}

// refuseWriters refuses what changes while it is looked at.
func (t *target) refuseWriters() error {
	table, err := mounts.Read()
	if err != nil {
		return err
	}
	use, err := table.UseOf(t.path)
	if err != nil {
		return err
	}
	for _, f := range use.Filesystems {
		if !f.ReadOnly {
			return fmt.Errorf("%s: %w (%s): it is no copy that could be looked at", t.path, ErrInUse, f)
		}
	}
	return t.refuseOpeners()
}

// browsed says how the files of an image that are shown are taken away again, "" where
// there are none.
func browsed(use mounts.Use) (string, error) {
	var commands []string
	for _, f := range use.Filesystems {
		dir, err := browse.Folder(f)
		if err != nil {
			return "", err
		}
		if command := "tidemark umount " + dir; dir != "" && !strings.Contains(strings.Join(commands, "\n")+"\n", command+"\n") {
			commands = append(commands, command)
		}
	}
	return strings.Join(commands, "; "), nil
}
