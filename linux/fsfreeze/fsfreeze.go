// Package fsfreeze freezes mounted filesystems, and makes sure that they thaw.
//
// For most uses, call [Arm] with the filesystems, then [Guard.Sync], [Guard.Freeze] with a
// time limit, and [Guard.Thaw], whose error says whether they stayed frozen until then.
// The program's main must begin with
//
//	reexec.Main(fsfreeze.Watchdog)
//
// The package owns the FIFREEZE and FITHAW calls and the watchdog. The watchdog is a
// second process of the same program, in a session of its own and locked in memory. It
// makes the calls. It thaws the filesystems when the caller says so, when the time limit
// is over, and when the process that started it dies for any reason. A FIFREEZE that
// blocks holds up only the watchdog, which thaws as soon as the call returns. When the
// watchdog is killed, the process that started it thaws at once.
//
// When both processes are killed at the same moment, as by cgroup.kill, the filesystems
// stay frozen (echo j >/proc/sysrq-trigger thaws them).
//
// The package refuses to thaw a filesystem that another program froze, and to freeze
// without a watchdog. A Guard may be used by several goroutines at once, but freezes once.
package fsfreeze

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that callers act on.
var (
	// ErrBusy says that another program has frozen a filesystem already.
	ErrBusy = errors.New("frozen by someone else")
	// ErrNotSupported says that a kind of filesystem cannot be frozen.
	ErrNotSupported = errors.New("filesystem cannot be frozen")
	// ErrBroken says that a filesystem did not stay frozen until Thaw.
	ErrBroken = errors.New("freeze broken")
	// ErrExpired says that a filesystem thawed because its time was up.
	ErrExpired = fmt.Errorf("%w: the time was up", ErrBroken)
	// ErrNoWatchdog says that the watchdog did not start; nothing was frozen.
	ErrNoWatchdog = errors.New("no watchdog")
)

// The calls, from include/uapi/linux/fs.h: _IOWR('X', 119, int) and 120.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// Filesystem is a filesystem to freeze.
type Filesystem struct {
	Name string   // for messages
	Dir  *os.File // any file or directory on it, open for reading
}

// stepError is the error of one step, "sync", "freeze" or "thaw", on a filesystem.
func stepError(step, name string, errno unix.Errno) error {
	cause := error(errno)
	switch {
	case step == "freeze" && errno == unix.EBUSY:
		cause = fmt.Errorf("%w: %w", ErrBusy, errno)
	case step == "freeze" && errno == unix.EOPNOTSUPP:
		cause = fmt.Errorf("%w: %w", ErrNotSupported, errno)
	case step == "thaw" && errno == unix.EINVAL:
		cause = fmt.Errorf("%w: thawed by someone else", ErrBroken)
	case step == "thaw":
		cause = fmt.Errorf("%w: %w", ErrBroken, errno)
	}
	return fmt.Errorf("fsfreeze: %s %s: %w", step, name, cause)
}

func freeze(fd int) unix.Errno { return call(fd, fiFreeze) }

func call(fd int, request uint) unix.Errno {
	for {
		err := unix.IoctlSetInt(fd, request, 0)
		if err == unix.EINTR {
			continue
		}
		errno, _ := err.(unix.Errno)
		return errno
	}
}

// A thaw that fails for a reason that may pass is tried again, thawTries times with a
// pause between. A filesystem whose device fails to write its superblock stays frozen.
const (
	thawPause = 50 * time.Millisecond
	thawTries = 200
)

func thaw(fd int) unix.Errno {
	for range thawTries {
		errno := call(fd, fiThaw)
		if errno == 0 || errno == unix.EINVAL || errno == unix.EPERM {
			return errno
		}
		time.Sleep(thawPause)
	}
	return call(fd, fiThaw)
}
