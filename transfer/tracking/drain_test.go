package tracking_test

import (
	"errors"
	"testing"
	"time"

	"tidemark/linux/mounts/mountstest"
	"tidemark/transfer/tracking"
	"tidemark/view"
)

// Who starts tracking must not take a raw disk, where nothing was held up, for one
// without writes in flight.
func TestDrainOfARawDeviceSaysThatNothingWasFrozen(t *testing.T) {
	disk := mountstest.Disk(t, 16<<20)
	if err := tracking.Drain(t.Context(), disk, time.Minute); !errors.Is(err, view.ErrNothingToFreeze) {
		t.Errorf("drain: %v", err)
	}
}
