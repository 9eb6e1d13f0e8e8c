// Package openers tells whether other programs write to a file, or have locked it.
//
// For most uses, call [Of] with a file that is open for reading only.
//
// The answer is the kernel's, for programs of any namespace: a read lease is granted for a
// regular file only while nobody has it open for writing, and a lock that conflicts with
// one of the whole file is shown by fcntl(2). Where leases are not supported (network
// filesystems, or a file of somebody else for a process without CAP_LEASE), only programs
// that /proc shows are found. A writer on another machine is not seen. Functions may be
// called by several goroutines at once, for different files.
package openers

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Use is who else uses a file. The zero value is nobody.
type Use struct {
	Writers bool     // somebody has it open for writing
	Locked  bool     // somebody holds a lock on it, as QEMU does
	Names   []string // of the programs that have it open so, as far as /proc shows them: "qemu (pid 7)"
}

// InUse reports whether there is anybody.
func (u Use) InUse() bool { return u.Writers || u.Locked }

// String says so in words; it is empty when there is nobody.
func (u Use) String() string {
	var how []string
	if u.Writers {
		how = append(how, "open for writing")
	}
	if u.Locked {
		how = append(how, "locked")
	}
	if len(how) == 0 {
		return ""
	}
	who := "another program"
	if len(u.Names) > 0 {
		who = strings.Join(u.Names, ", ")
	}
	return strings.Join(how, " and ") + " by " + who
}

// Of returns who uses f, a regular file or device that is open for reading only. For a
// device only locks are told: servers of network disks have theirs open for writing. This
// process counts like any other.
func Of(f *os.File) (Use, error) {
	info, err := f.Stat()
	if err != nil {
		return Use{}, err
	}
	var u Use
	if u.Locked, err = locked(f); err != nil {
		return Use{}, err
	}
	told := true
	if info.Mode().IsRegular() {
		u.Writers, err = leaseRefused(f)
		told = err == nil
	}
	if told && !u.InUse() {
		return u, nil
	}
	if u.Names, err = shownBy(info); !told {
		u.Writers = len(u.Names) > 0
	}
	return u, err
}

// locked asks for a lock that conflicts with that of the whole file.
func locked(f *os.File) (bool, error) {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOLCK) {
		return false, nil // the filesystem has no locks
	}
	if err != nil {
		return false, &os.PathError{Op: "look for locks", Path: f.Name(), Err: err}
	}
	return l.Type != unix.F_UNLCK, nil
}

// leaseRefused reports whether the kernel refuses a read lease because somebody has the
// file open for writing. An error says that it does not tell.
func leaseRefused(f *os.File) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return false, err
	}
	switch uint32(st.Type) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC:
		return false, unix.EOPNOTSUPP // they refuse when the server has given them no delegation
	}
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	if errors.Is(err, unix.EAGAIN) {
		return true, nil
	}
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	}
	return false, err
}

// shownBy names the processes that /proc shows with the file open for writing. Those that
// end meanwhile, and those of others for a process that is not root, are left out.
func shownBy(file os.FileInfo) ([]string, error) {
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return nil, err
	}
	var names []string
	last := ""
	for _, fd := range fds {
		process := filepath.Dir(filepath.Dir(fd))
		if process == last {
			continue
		}
		if info, err := os.Stat(fd); err != nil || !os.SameFile(info, file) || !writable(fd) {
			continue
		}
		name, _ := os.ReadFile(filepath.Join(process, "comm")) // a name is a courtesy
		names = append(names, fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), filepath.Base(process)))
		last = process
	}
	return names, nil
}

// writable reports whether a descriptor of a process is open for writing.
func writable(fd string) bool {
	b, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(fd)), "fdinfo", filepath.Base(fd)))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if text, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(text), 8, 64)
			return err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY
		}
	}
	return false
}
