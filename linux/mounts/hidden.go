package mounts

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

// A claim that lasts no longer than this is one of a program that looks: mkfs,
// fsck, a mount that fails, another one asking what Hidden asks.
const (
	briefClaim = time.Second
	claimPoll  = 20 * time.Millisecond
)

// Hidden returns the devices, of that at path and all that store data there (for
// an image file, of the loop devices over it), which somebody holds exclusively who
// is not in the table: no filesystem, swap area or device made of it. That is a
// filesystem whose mounts cannot be seen (lazily unmounted but still in use, of a
// mount namespace that no process shows), one of a kind that is not known to span
// devices, or a program that uses the device raw. A loop device that was attached
// read-only is passed over: whoever holds it cannot write.
//
// Each device is claimed for a moment, as a mount would. One without a node in
// /dev is passed over. An error says that one of them could not be claimed; what was
// found on the others is returned beside it.
func (t *Table) Hidden(path string) ([]string, error) {
	roots, err := t.LoopsOver(path)
	if err != nil {
		return nil, err
	}
	d, err := DeviceOf(path)
	if err == nil {
		roots = append(roots, d)
	} else if !errors.Is(err, unix.ENOTBLK) {
		return nil, err
	}
	set, err := t.stack(roots)
	if err != nil {
		return nil, err
	}
	var hidden []string
	var failed error
	for dev := range set {
		at := ""
		if dev == d {
			at = path // may have no other node
		}
		name, err := t.hidden(dev, at)
		if absent(err) {
			continue // taken apart in between
		}
		if err != nil {
			failed = fmt.Errorf("mounts: %w", err)
		}
		if name != "" {
			hidden = append(hidden, name)
		}
	}
	slices.Sort(hidden)
	return hidden, failed
}

// hidden returns the path of d when it is held by somebody unseen. An empty path
// stands for where its node usually is.
func (t *Table) hidden(d sysfs.Dev, path string) (string, error) {
	n, err := t.sys.node(d)
	if err != nil {
		return "", err
	}
	known, err := t.explained(n)
	if known || err != nil {
		return "", err
	}
	if path == "" {
		path = n.path()
	}
	if n.readOnlyLoop(path) {
		return "", nil
	}
	for end := time.Now().Add(briefClaim); ; time.Sleep(claimPoll) {
		held, err := n.claimed(path)
		if !held || err != nil {
			return "", err
		}
		if time.Now().After(end) {
			return path, nil
		}
	}
}

// explained reports whether a claim on n is that of somebody in the table.
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
		// block/bdev.c). Whoever holds it is looked for there.
		if held, err := p.claimed(p.path()); held || err != nil && !absent(err) {
			return held, err
		}
	}
	return false, nil
}

// user reports whether the table has somebody who holds exactly n.
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

// path returns where udev and devtmpfs have the device's node.
func (n node) path() string { return "/dev/" + strings.ReplaceAll(n.name(), "!", "/") }

// claimed is claimed for the device n at path. A node that is not there, or is
// another device's, says no; so does a device that nobody can open now: without a
// medium, or a DRBD device in the secondary role (drbd_open).
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
