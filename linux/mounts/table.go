package mounts

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

// Table is what was mounted, and which swap areas were in use, when it was read.
type Table struct {
	sys         system
	filesystems []*Filesystem // in mount order
	swaps       []Swap
	btrfs       []btrfs
	loops       []loop
}

// Read takes a snapshot of this machine's mounts.
func Read() (*Table, error) { return system{"/proc", "/sys"}.read() }

func (s system) read() (*Table, error) {
	t := &Table{sys: s}
	if err := t.readMounts(); err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	var errs [3]error
	t.swaps, errs[0] = s.readSwaps()
	t.btrfs, errs[1] = s.readBtrfs()
	t.loops, errs[2] = s.readLoops()
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	for _, f := range t.filesystems {
		f.Members = t.membersOf(f)
	}
	return t, nil
}

func (t *Table) readMounts() error {
	b, err := os.ReadFile(filepath.Join(t.sys.proc, "self/mountinfo"))
	if err != nil {
		return err
	}
	if err := t.addMounts(bytes.NewReader(b), 0); err != nil {
		return fmt.Errorf("self/mountinfo: %w", err)
	}
	for _, pid := range t.sys.otherNamespaces() {
		// The process may be gone, and its namespace with it.
		b, err := os.ReadFile(filepath.Join(t.sys.proc, strconv.Itoa(pid), "mountinfo"))
		if err != nil {
			continue
		}
		if err := t.addMounts(bytes.NewReader(b), pid); err != nil {
			return fmt.Errorf("%d/mountinfo: %w", pid, err)
		}
	}
	return nil
}

// addMounts adds the mounts that process pid sees; one superblock becomes one
// Filesystem, whichever namespaces it is mounted in.
func (t *Table) addMounts(r io.Reader, pid int) error {
	infos, err := mountinfo.GetMountsFromReader(r, nil)
	if err != nil {
		return err
	}
	for _, m := range infos {
		dev := sysfs.Dev{Major: uint32(m.Major), Minor: uint32(m.Minor)}
		f := t.byDev(dev)
		if f == nil {
			f = &Filesystem{
				Dev: dev, Type: m.FSType, Source: m.Source, options: m.VFSOptions,
				ReadOnly: readOnly(m.VFSOptions), order: len(t.filesystems),
			}
			t.filesystems = append(t.filesystems, f)
		}
		f.Mounts = append(f.Mounts, Mount{ID: m.ID, Point: m.Mountpoint, Root: m.Root, PID: pid})
	}
	return nil
}

// readOnly looks for the flag that the kernel puts first.
func readOnly(options string) bool {
	first, _, _ := strings.Cut(options, ",")
	return first == "ro"
}

func (t *Table) byDev(d sysfs.Dev) *Filesystem {
	for _, f := range t.filesystems {
		if f.Dev == d {
			return f
		}
	}
	return nil
}

// byMount finds the filesystem of a mount, by its id where that is known and by
// the number of the device where the mount belongs to a namespace that is not.
func (t *Table) byMount(id int, dev sysfs.Dev) *Filesystem {
	for _, f := range t.filesystems {
		if f.hasMount(id) {
			return f
		}
	}
	return t.byDev(dev)
}

// otherNamespaces returns one process for every mount namespace but our own.
func (s system) otherNamespaces() []int {
	own, err := os.Readlink(filepath.Join(s.proc, "self/ns/mnt"))
	if err != nil {
		return nil
	}
	seen := map[string]bool{own: true}
	entries, err := os.ReadDir(s.proc)
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		ns, err := os.Readlink(filepath.Join(s.proc, e.Name(), "ns/mnt"))
		if err == nil && !seen[ns] {
			seen[ns] = true
			pids = append(pids, pid)
		}
	}
	return pids
}

// absent reports whether err says that a device has gone, or its folder in sysfs.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO)
}
