package bpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"tidemark/block"
	"tidemark/linux/bpf"
	"tidemark/linux/sysfs"
)

const (
	idleLimit = 5 * time.Second
	idlePoll  = time.Millisecond
)

// drain waits until the writes that were queued before tracking began are done: on a
// bio-based disk nobody knows their ranges, so their completion cannot be marked. Then a
// new epoch begins, which leaves behind the doubt that those completions raised. Where
// the barrier fails, or has nothing to hold up, an instant without a write in flight
// does as well. The error wraps bpf.ErrNotSupported where the kernel does not count
// writes in flight: no pause of the writers would help.
func (s *session) drain(ctx context.Context, barrier func(context.Context) error) error {
	drained := errors.New("no barrier")
	if barrier != nil {
		drained = barrier(ctx)
	}
	if drained != nil {
		err := WaitIdle(ctx, s.rec.Disk, idleLimit)
		if errors.Is(err, bpf.ErrNotSupported) {
			return fmt.Errorf("track: start on %s: %w", s.rec.Disk, err)
		}
		if err != nil {
			return fmt.Errorf("track: start on %s: tracking has no clean beginning: pause the writers for a moment: %w", s.rec.Disk, err)
		}
	}
	_, err := s.flip()
	return err
}

// WaitIdle waits until the kernel has counted no write in flight on the disk, given by
// its kernel name, but no longer than limit. The disk is polled, so that one that is
// never idle for long may be missed. The error wraps ErrNotSupported when the kernel
// does not count.
func WaitIdle(ctx context.Context, disk string, limit time.Duration) error {
	if err := countsInFlight(disk); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		busy, err := writesInFlight(disk)
		if err != nil || busy == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("track: %s: writes are always in flight (%d now): %w", disk, busy, ctx.Err())
		case <-time.After(idlePoll):
		}
	}
}

// countsInFlight refuses a disk for which the kernel may count nothing, unless its
// counters prove that it does.
func countsInFlight(disk string) error {
	dir, err := mayNotCount(disk)
	if dir == "" || err != nil {
		return err
	}
	d, err := block.Open(sysfs.DevPath(disk), block.Options{Direct: true})
	if err != nil {
		return fmt.Errorf("track: %w", err)
	}
	defer d.Close()
	_, err = d.Counters()
	if errors.Is(err, block.ErrNoCounters) {
		return fmt.Errorf("track: whether writes are in flight cannot be told (echo 1 >%s/queue/iostats): %w without its counts: %w", dir, bpf.ErrNotSupported, err)
	}
	if err != nil {
		return fmt.Errorf("track: %w", err)
	}
	return nil
}

// mayNotCount returns the folder in sysfs of what leaves writes in flight out when its
// queue/iostats is 0; "" is none. Device-mapper and md do since 6.11 or so. An NVMe
// path does always, as any disk with requests (blk_mq_check_inflight in block/blk-mq.c);
// the disk above it counts by itself since 6.5, if its own is 1. Other drivers without
// requests count all the same, or have done a write when they return.
func mayNotCount(disk string) (string, error) {
	dir := sysfs.DiskDir(disk)
	if _, err := os.Stat(filepath.Join(dir, "md")); !errors.Is(err, fs.ErrNotExist) || sysfs.IsMapped(disk) {
		return dir, nil
	}
	paths, err := nvmePaths(disk)
	if err != nil {
		return "", err
	}
	for _, path := range paths {
		if on, err := sysfs.Text(filepath.Join(path, "queue", "iostats")); err == nil && on == "0" {
			return path, nil
		}
	}
	return "", nil
}

// nvmePaths returns the folders in sysfs of the paths of an NVMe disk that has several.
func nvmePaths(disk string) ([]string, error) {
	var subsystem, namespace int
	if n, _ := fmt.Sscanf(disk, "nvme%dn%d", &subsystem, &namespace); n != 2 {
		return nil, nil
	}
	paths, err := filepath.Glob(sysfs.DiskDir(fmt.Sprintf("nvme%dc*n%d", subsystem, namespace)))
	if err != nil {
		return nil, fmt.Errorf("track: %w", err)
	}
	return paths, nil
}

// writesInFlight counts the writes that the kernel says are in flight on a disk and, for
// an NVMe disk with several paths, on these: before 6.5 the disk itself counted none.
func writesInFlight(disk string) (uint64, error) {
	dirs, err := nvmePaths(disk)
	if err != nil {
		return 0, err
	}
	var sum uint64
	for _, dir := range append(dirs, sysfs.DiskDir(disk)) {
		n, err := sysfs.WritesInFlight(dir)
		if err != nil {
			return 0, fmt.Errorf("track: %w", err)
		}
		sum += n
	}
	return sum, nil
}
