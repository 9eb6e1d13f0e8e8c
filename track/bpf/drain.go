package bpf

import (
	"context"
	"fmt"
	"time"

	"tidemark/block"
	"tidemark/view"
)

// idleFrozen is how long writes in flight are waited for while filesystems are
// frozen: what they may have under way then are discards.
const idleFrozen = time.Second

// Drain freezes and thaws what is mounted from a device, within limit, and tells for how long
// anything was frozen: it is what Options.Drain asks for. Within the freeze it waits until writes
// that went past the filesystems have ended, as to another partition. The error wraps
// view.ErrNothingToFreeze where nothing is mounted that could be frozen.
func Drain(ctx context.Context, d *block.Device, limit time.Duration) (time.Duration, error) {
	v, err := view.Freeze(view.Options{Sources: []*block.Device{d}, MaxFreeze: limit}).Take(ctx, func(ctx context.Context) error {
		return WaitIdle(ctx, d.Identity().Disk, idleFrozen)
	})
	if err != nil {
		return 0, fmt.Errorf("drain: %s: %w", d.Path(), err)
	}
	report, err := v.Close()
	return report.Frozen, err
}
