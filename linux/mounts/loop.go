package mounts

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

// A loop is an attached loop device.
type loop struct {
	dev    sysfs.Dev
	name   string    // "loop0"
	path   string    // of the backing file, as the kernel last knew it
	device sysfs.Dev // the backing device, when it lies on one
	file   sysfs.Dev // st_dev of the backing file; zero when not known
	inode  uint64
}

// deletedSuffix is what the kernel appends to the path of an unlinked file.
const deletedSuffix = " (deleted)"

func (s system) readLoops() ([]loop, error) {
	names, err := namesIn(filepath.Join(s.sys, "block"), "loop")
	if err != nil {
		return nil, err
	}
	var loops []loop
	for _, name := range names {
		dir := filepath.Join(s.sys, "block", name)
		b, err := os.ReadFile(filepath.Join(dir, "loop/backing_file"))
		if err != nil {
			continue // nothing is attached
		}
		n, err := nodeAt(dir)
		if absent(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		l := loop{dev: n.dev, name: n.name(), path: strings.TrimSuffix(string(b), "\n")}
		l.identify()
		loops = append(loops, l)
	}
	return loops, nil
}

// identify finds the file or device that the loop device lies on. The driver's answer
// holds for files that were unlinked or belong to another namespace; the path serves where
// the device node cannot be opened.
func (l *loop) identify() {
	var st unix.Stat_t
	known := unix.Stat(l.path, &st) == nil
	if known && st.Mode&unix.S_IFMT == unix.S_IFBLK {
		l.device = sysfs.DevOf(st.Rdev)
		return
	}
	if known {
		l.file, l.inode = sysfs.DevOf(st.Dev), st.Ino
	}
	f, err := os.OpenFile(sysfs.DevPath(l.name), os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil || (known && info.Inode == l.inode) {
		return
	}
	l.file, l.inode = sysfs.DevOf(info.Device), info.Inode
	if known {
		l.path += deletedSuffix // the path names another file now
	}
}

func (t *Table) loopOf(d sysfs.Dev) *loop {
	for i := range t.loops {
		if t.loops[i].dev == d {
			return &t.loops[i]
		}
	}
	return nil
}

// home returns the filesystem that the backing file lies on; nil when it cannot
// be told, or when the device lies on another device.
func (t *Table) home(l *loop) *Filesystem {
	if l.device != (sysfs.Dev{}) {
		return nil
	}
	if f := t.byDev(l.file); f != nil && l.file != (sysfs.Dev{}) {
		return f
	}
	f, err := t.of(strings.TrimSuffix(l.path, deletedSuffix))
	if err != nil {
		return nil
	}
	return f
}

// LoopsOver returns the loop devices whose backing file is the regular file or
// block device at path.
func (t *Table) LoopsOver(path string) ([]sysfs.Dev, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("mounts: %w", &os.PathError{Op: "stat", Path: path, Err: err})
	}
	var devs []sysfs.Dev
	for _, l := range t.loops {
		same := l.inode == st.Ino && l.file == sysfs.DevOf(st.Dev)
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			same = l.device == sysfs.DevOf(st.Rdev)
		}
		if same {
			devs = append(devs, l.dev)
		}
	}
	return devs, nil
}
