package mounts

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

// Use lists the users of a block device or a file. The zero value lists none.
type Use struct {
	Filesystems []Filesystem // mounted from it, through whatever is stacked on it
	Swaps       []Swap
	Holders     []string // devices made of it: "dm-0", "md1", "loop3"
	// Claimed says that a filesystem, device or program holds it exclusively. Where the
	// other fields are empty, this process cannot see the holder.
	Claimed bool
}

// InUse reports whether there is any user.
func (u Use) InUse() bool {
	return len(u.Filesystems) > 0 || len(u.Swaps) > 0 || len(u.Holders) > 0 || u.Claimed
}

// String lists the uses in words; it is empty when there are none.
func (u Use) String() string {
	var words []string
	for _, f := range u.Filesystems {
		words = append(words, "mounted: "+f.String())
	}
	for _, s := range u.Swaps {
		words = append(words, "swap: "+s.Path)
	}
	for _, h := range u.Holders {
		words = append(words, "part of "+h)
	}
	if len(words) == 0 && u.Claimed {
		words = append(words, "held exclusively by another program")
	}
	return strings.Join(words, "; ")
}

// UseOf returns the users of the block device or regular file at path. For a whole disk
// that counts its partitions, for a partition what overlaps it, for a file the
// loop devices over it.
func (t *Table) UseOf(path string) (Use, error) {
	loops, err := t.LoopsOver(path)
	if err != nil {
		return Use{}, err
	}
	var u Use
	devs := loops
	d, err := DeviceOf(path)
	switch {
	case err == nil:
		devs = append(devs, d)
		if u.Claimed, err = claimed(path); err != nil {
			return Use{}, err
		}
	case !errors.Is(err, unix.ENOTBLK):
		return Use{}, err
	}
	if u.Filesystems, err = t.On(devs...); err != nil {
		return Use{}, err
	}
	if u.Swaps, err = t.SwapsOn(devs...); err != nil {
		return Use{}, err
	}
	if u.Holders, err = t.holders(d, loops); err != nil {
		return Use{}, err
	}
	for tries := 0; u.Claimed && len(u.Filesystems)+len(u.Swaps)+len(u.Holders) == 0 && tries < claimTries; tries++ {
		time.Sleep(claimPause)
		if u.Claimed, err = claimed(path); err != nil {
			return Use{}, err
		}
	}
	return u, nil
}

// How often a claim of somebody unseen is looked at again, and after how long: another process that
// looks, as claimed does, holds the device for a moment.
const (
	claimTries = 10
	claimPause = 20 * time.Millisecond
)

// holders names the devices that are made of d, or of its partitions.
func (t *Table) holders(d sysfs.Dev, loops []sysfs.Dev) ([]string, error) {
	var names []string
	for _, l := range loops {
		names = append(names, t.loopOf(l).name)
	}
	if d == (sysfs.Dev{}) {
		return names, nil
	}
	n, err := t.sys.node(d)
	if err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	nodes := []node{n}
	if !n.partition {
		parts, err := n.partitions()
		if err != nil {
			return nil, fmt.Errorf("mounts: %w", err)
		}
		nodes = append(nodes, parts...)
	}
	for _, n := range nodes {
		over, err := t.sys.linked(n, "holders")
		if err != nil {
			return nil, fmt.Errorf("mounts: %w", err)
		}
		for _, o := range over {
			names = append(names, o.name())
		}
	}
	return names, nil
}

// claimed tries to claim the device for a moment, as a mount would.
func claimed(path string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("mounts: claim: %w", err)
	}
	return false, f.Close()
}
