package lvm

import (
	"context"

	"tidemark/linux/dm"
)

// Detached is a volume and a snapshot of it that are out of use: LVM has their devices down,
// and devices of our own lead to what they consist of.
type Detached struct {
	Origin, Store string // paths of block devices: the volume's content, and the snapshot's store
}

// Detach takes a volume and its snapshot out of use. The error wraps ErrRefused or ErrInUse
// when that is not to be; then nothing has changed. After any other error the volumes are as
// they were, or the error says how they are.
func Detach(ctx context.Context, ctl *dm.Control, origin, snapshot Volume) (*Detached, error) {
	return nil, nil
}

// Begin is called before the first byte is written to Origin: from here on the volume is not
// activated by itself, as when the machine boots, until Attach has been told that all is done.
func (d *Detached) Begin(ctx context.Context) error { return nil }

// Attach takes our devices away and activates the volumes again; after Begin only if done says
// that all has been written. Otherwise they stay down, for half of it may have been.
func (d *Detached) Attach(done bool) error { return nil }
