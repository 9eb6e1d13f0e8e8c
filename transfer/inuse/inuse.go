// Package inuse tells whether somebody uses a block device or image, so that it must not
// be written to.
//
// For most uses, call [Check] with the path of a target. Who locks the target first asks
// [Held] before and [Opened] behind the lock, so that another run of tidemark is none of
// the users.
//
// The package owns the sum of what packages mounts, openers and browse know, and the
// words for it: filesystems that are mounted from it, through whatever is stacked on it,
// swap, devices made of it (device-mapper, md, LVM, bcache, loop), who claims it
// exclusively, who has an image open for writing, and who has locked it. It cannot see
// writers on another machine, and programs that have a device open without a claim or a
// lock. An answer grows old at once: ask again behind a lock, and open devices with
// block.Options.Exclusive. Functions may be called by several goroutines at once.
package inuse

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/linux/mounts"
	"tidemark/linux/openers"
	"tidemark/linux/sysfs"
	"tidemark/transfer/browse"
)

var (
	// ErrInUse says that somebody uses a device or image. Nothing has been written to it.
	ErrInUse = errors.New("refused: it is in use")
	// ErrBrowsed says that package browse shows its files, and the error how that is ended.
	// It wraps ErrInUse.
	ErrBrowsed = fmt.Errorf("%w by tidemark mount", ErrInUse)
)

// Check returns nil where nobody uses the device or image at path, or nothing is there.
// The error is that of Held, and else that of Opened.
func Check(path string) error {
	if err := Held(path); err != nil {
		return err
	}
	return Opened(path)
}

// Held asks the kernel: the error names what is mounted from the device or image at path,
// swapped to, or made of it, and wraps ErrInUse or ErrBrowsed. For a whole disk that
// counts its partitions, for a partition what overlaps it.
func Held(path string) error {
	if missing(path) {
		return nil
	}
	use, err := useOf(path)
	if err != nil || !use.InUse() {
		return err
	}
	undo, err := browsed(use)
	switch {
	case err != nil:
		return err
	case undo != "":
		return fmt.Errorf("%s: %w (%s): %s", path, ErrBrowsed, use, undo)
	}
	return fmt.Errorf("%s: %w (%s)", path, ErrInUse, use)
}

// Opened asks for programs that work with it as with any file, a virtual machine for
// example: the error names who has the image at path open for writing, or a lock on it or
// on the device, and wraps ErrInUse. This process counts like any other.
func Opened(path string) error {
	if missing(path) {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	use, err := openers.Of(f)
	if err == nil && use.InUse() {
		err = fmt.Errorf("%s: %w (%s)", path, ErrInUse, use)
	}
	return err
}

// Changing returns nil where the device or image at path stands still while it is looked
// at: what is mounted of it is read-only, and no program writes to it.
func Changing(path string) error {
	use, err := useOf(path)
	if err != nil {
		return err
	}
	for _, f := range use.Filesystems {
		if !f.ReadOnly {
			return fmt.Errorf("%s: %w (%s): it is no copy that could be looked at", path, ErrInUse, f)
		}
	}
	return Opened(path)
}

// Reaches reports whether a write to what is at path is a write to d: they are the same,
// share bytes of a disk, or path is a device that is made of d.
func Reaches(path string, d *block.Device) (bool, error) {
	if missing(path) {
		return false, nil
	}
	id, err := block.Identify(path)
	if errors.Is(err, block.ErrNotBlockDevice) {
		return sameFile(path, d)
	}
	if err != nil || d.IsDevice() && id.Overlaps(d.Identity()) {
		return err == nil, err
	}
	table, err := mounts.Read()
	if err != nil {
		return false, err
	}
	roots := []sysfs.Dev{d.Identity().Dev()}
	if !d.IsDevice() {
		if roots, err = table.LoopsOver(d.Path()); err != nil {
			return false, err
		}
	}
	for _, root := range roots {
		above, err := table.Above(root)
		if err != nil || above[id.Dev()] {
			return err == nil, err
		}
	}
	return false, nil
}

func missing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func useOf(path string) (mounts.Use, error) {
	table, err := mounts.Read()
	if err != nil {
		return mounts.Use{}, err
	}
	return table.UseOf(path)
}

func sameFile(path string, d *block.Device) (bool, error) {
	a, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	b, err := d.File().Stat()
	return err == nil && os.SameFile(a, b), err
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
		if command := "tidemark umount " + dir; dir != "" && !slices.Contains(commands, command) {
			commands = append(commands, command)
		}
	}
	return strings.Join(commands, "; "), nil
}
