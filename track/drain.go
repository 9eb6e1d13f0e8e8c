package track

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	drainLimit = 5 * time.Second
	drainPoll  = time.Millisecond
)

// drain waits until the writes that were queued before tracking began are done:
// on a bio-based disk nobody knows their ranges, so their completion cannot be
// marked. Then a new epoch begins, which leaves behind the doubt that those
// completions raised.
func (s *session) drain(ctx context.Context, barrier func(context.Context) error) error {
	drained := errors.New("no barrier")
	if barrier != nil {
		drained = barrier(ctx)
	}
	if drained != nil {
		if err := waitIdle(ctx, s.rec.Disk); err != nil {
			return err
		}
	}
	_, err := s.flip()
	return err
}

// waitIdle waits until the kernel has counted no write in flight on the disk.
func waitIdle(ctx context.Context, disk string) error {
	ctx, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	for {
		busy, err := writesInFlight(disk)
		if err != nil || busy == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("track: start on %s: %d writes are always in flight, so tracking has no clean beginning: "+
				"pause the writers for a moment: %w", disk, busy, ctx.Err())
		case <-time.After(drainPoll):
		}
	}
}

// writesInFlight counts the writes that the kernel says are in flight on a disk
// and, for an NVMe disk with several paths, on these: before 6.5 the disk itself
// counted none.
func writesInFlight(disk string) (uint64, error) {
	paths := []string{filepath.Join("/sys/block", disk, "inflight")}
	var subsystem, namespace int
	if n, _ := fmt.Sscanf(disk, "nvme%dn%d", &subsystem, &namespace); n == 2 {
		more, err := filepath.Glob(fmt.Sprintf("/sys/block/nvme%dc*n%d/inflight", subsystem, namespace))
		if err != nil {
			return 0, fmt.Errorf("track: %w", err)
		}
		paths = append(paths, more...)
	}
	var sum uint64
	for _, path := range paths {
		n, err := readInFlight(path)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

func readInFlight(path string) (uint64, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("track: %w", err)
	}
	fields := strings.Fields(string(raw))
	if len(fields) != 2 {
		return 0, fmt.Errorf("track: %s: %q: want two numbers", path, raw)
	}
	n, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("track: %s: %w", path, err)
	}
	return n, nil
}
