package dm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

// nodes keeps /dev/mapper where udev does not. It leaves alone what udev has made.
type nodes struct {
	dev string // "/dev"
}

func (n nodes) path(info Info) string {
	return filepath.Join(n.dev, "mapper", kernelNameOf(info.Name))
}

// make sees to it that the path of a device leads to it. A node or link that leads
// elsewhere is replaced, anything else is not.
func (n nodes) make(info Info) error {
	path := n.path(info)
	if n.leads(path, info.Dev()) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	fresh := path + "~" // no device is called so: see plain
	if err := n.create(fresh, info); err != nil {
		return err
	}
	err := replaceable(path)
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	return nil
}

// create makes a link to the kernel's own node, or a node where there is none.
func (n nodes) create(path string, info Info) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	own := kernelNode(info)
	if n.leads(filepath.Join(n.dev, own), info.Dev()) {
		return os.Symlink("../"+own, path)
	}
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(info.Major, info.Minor))); err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	return nil
}

// kernelNode is the name that the kernel gives a device in /dev.
func kernelNode(info Info) string { return fmt.Sprintf("dm-%d", info.Minor) }

// remove removes the path of a device that is gone, unless it leads elsewhere.
func (n nodes) remove(info Info) error {
	path := n.path(info)
	target, err := os.Readlink(path)
	if err == nil && filepath.Base(target) != kernelNode(info) || err != nil && !n.leads(path, info.Dev()) {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// leads reports whether path is, or leads to, the block device of that number.
func (n nodes) leads(path string, dev sysfs.Dev) bool {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && unix.Major(st.Rdev) == dev.Major && unix.Minor(st.Rdev) == dev.Minor
}

// replaceable is nil when path is missing, a link or a block device.
func replaceable(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode()&fs.ModeSymlink != 0, st.Mode()&fs.ModeType == fs.ModeDevice:
		return nil
	}
	return fmt.Errorf("%s is in the way: it is neither a link nor a block device", path)
}
