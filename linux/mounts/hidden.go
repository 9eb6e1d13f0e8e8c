package mounts

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

// A program that only looks claims a device for no longer than briefClaim: mkfs, fsck, a
// mount that fails, another call of Hidden.
const (
	briefClaim = time.Second
	claimPoll  = 20 * time.Millisecond
)

// Hidden returns the devices that a holder outside the table has claimed: no filesystem,
// swap area or device in the table explains the claim. It looks at the devices and image
// files at paths, and at all devices that store data there (loop devices over an image file
// included). Such a holder is a filesystem whose mounts cannot be seen (lazily unmounted but
// still in use, of a mount namespace that no process shows), a filesystem of a kind that is
// not known to span devices, or a program that uses the device raw. A loop device that was
// attached read-only is passed over: its holder cannot write.
//
// Hidden claims each device for a moment, as a mount would, and asks again for up to a
// second, for all devices together, while a claim fails. It passes over a device without a
// node in /dev. The error wraps the cause of ctx when that ends first, and no devices are
// returned; any other error says that a device could not be claimed, and the devices that
// were found are returned beside it.
func (t *Table) Hidden(ctx context.Context, paths ...string) ([]string, error) {
	given := map[sysfs.Dev]string{} // where a device may have its only node
	var roots []sysfs.Dev
	for _, path := range paths {
		loops, err := t.LoopsOver(path)
		if err != nil {
			return nil, err
		}
		roots = append(roots, loops...)
		d, err := DeviceOf(path)
		if err == nil {
			roots, given[d] = append(roots, d), path
		} else if !errors.Is(err, unix.ENOTBLK) {
			return nil, err
		}
	}
	set, err := t.stack(roots)
	if err != nil {
		return nil, err
	}
	suspects := map[node]string{}
	var failed error
	for dev := range set {
		n, path, err := t.unexplained(dev, given[dev])
		switch {
		case absent(err): // taken apart in between
		case err != nil:
			failed = fmt.Errorf("mounts: %w", err)
		case path != "":
			suspects[n] = path
		}
	}
	hidden, err := stillHeld(ctx, suspects)
	return hidden, errors.Join(failed, err)
}

// unexplained returns the device d and its path. The path is empty when the table explains
// a claim on the device, and when its holder cannot write. An empty path given stands for
// the usual place of the node.
func (t *Table) unexplained(d sysfs.Dev, path string) (node, string, error) {
	n, err := t.sys.node(d)
	if err != nil {
		return n, "", err
	}
	known, err := t.explained(n)
	if known || err != nil {
		return n, "", err
	}
	if path == "" {
		path = n.path()
	}
	if n.readOnlyLoop(path) {
		path = ""
	}
	return n, path, nil
}

// stillHeld returns the paths of the devices that stay claimed for longer than briefClaim.
func stillHeld(ctx context.Context, suspects map[node]string) ([]string, error) {
	var failed error
	for end := time.Now().Add(briefClaim); ; {
		for n, path := range suspects {
			held, err := n.claimed(path)
			if !held {
				delete(suspects, n)
			}
			if err != nil && !absent(err) {
				failed = fmt.Errorf("mounts: %w", err)
			}
		}
		if len(suspects) == 0 || time.Now().After(end) {
			return slices.Sorted(maps.Values(suspects)), failed
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("mounts: look for hidden users: %w", context.Cause(ctx))
		case <-time.After(claimPoll):
		}
	}
}

// explained reports whether a claim on n is that of a user in the table.
func (t *Table) explained(n node) (bool, error) {
	if known, err := t.user(n); known || err != nil {
		return known, err
	}
	if n.partition {
		disk, err := n.disk()
		if err != nil {
			return false, err
		}
		return t.user(disk)
	}
	parts, err := n.partitions()
	if err != nil {
		return false, err
	}
	for _, p := range parts {
		// A claim on a partition is one on its disk as well (bd_may_claim in
		// block/bdev.c); its holder is looked for on the partition.
		if held, err := p.claimed(p.path()); held || err != nil && !absent(err) {
			return held, err
		}
	}
	return false, nil
}

// user reports whether the table has a user of exactly n.
func (t *Table) user(n node) (bool, error) {
	only := map[sysfs.Dev]bool{n.dev: true}
	for _, f := range t.filesystems {
		if f.isOn(only) {
			return true, nil
		}
	}
	for _, s := range t.swaps {
		if d, ok := t.sourceDevice(s.Path); ok && !s.File && d == n.dev {
			return true, nil
		}
	}
	over, err := t.sys.linked(n, "holders")
	return len(over) > 0, err
}

// readOnlyLoop reports whether the device n at path is a loop device that was attached
// read-only, or a partition of one. The driver fails its writes for as long as it is
// attached (loop_handle_cmd in drivers/block/loop.c); "ro" in sysfs proves less, since
// it can be set and cleared on a device in use (BLKROSET) and stops no write.
func (n node) readOnlyLoop(path string) bool {
	if !strings.HasPrefix(n.name(), "loop") {
		return false
	}
	if d, err := DeviceOf(path); err != nil || d != n.dev {
		return false
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	// A partition hands the call on to its disk.
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	return err == nil && info.Flags&unix.LO_FLAGS_READ_ONLY != 0
}

// path returns the place of the device's node with udev and devtmpfs.
func (n node) path() string { return sysfs.DevPath(n.name()) }

// claimed reports whether the device n, whose node is at path, is claimed. It says no for
// a node that is missing or belongs to another device, and for a device that no program
// can open now: without a medium, or a DRBD device in the secondary role (drbd_open).
func (n node) claimed(path string) (bool, error) {
	if d, err := DeviceOf(path); err != nil || d != n.dev {
		return false, nil
	}
	held, err := claimed(path)
	for _, none := range []error{os.ErrNotExist, unix.ENOMEDIUM, unix.EMEDIUMTYPE} {
		if errors.Is(err, none) {
			return false, nil
		}
	}
	return held, err
}
