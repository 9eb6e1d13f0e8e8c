package dm

import (
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The protocol between libdevmapper and udev's rules for device-mapper (libdevmapper.h of
// LVM2). The upper half of a call's event number holds flags, the lower half that of a
// cookie; the kernel hands both to udev with the event. The cookie is the key of a
// semaphore, which the last of the rules decrements.
const (
	cookieMagic = 0x0d4d << 16
	cookieMask  = 0xffff
	// flagPrimary marks the kernel's own events, as against those that udev makes up.
	flagPrimary = 0x0040 << 16
	// flagsHidden have udev make the node in /dev/mapper, and neither look at the content of
	// the device, nor link to it, nor tell other programs that there is anything to use
	// (DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG, …_DISK_…, …_OTHER_…).
	flagsHidden = (0x0002 | 0x0004 | 0x0008) << 16
)

const (
	// udevPatience is how long to wait for udev. It may be in another container,
	// where it finds no semaphore.
	udevPatience = 30 * time.Second
	udevPause    = time.Millisecond
	udevMaxPause = 20 * time.Millisecond
)

// udev knows whether udev answers, and how long to wait for it.
type udev struct {
	control  string   // the socket that exists while udevd runs
	rules    []string // where the rule that decrements the semaphore may be
	ruled    bool     // it is there
	patience time.Duration
}

func defaultUdev() udev {
	const rule = "95-dm-notify.rules"
	return udev{
		control: "/run/udev/control",
		rules: []string{
			"/usr/lib/udev/rules.d/" + rule, "/lib/udev/rules.d/" + rule,
			"/etc/udev/rules.d/" + rule, "/run/udev/rules.d/" + rule,
		},
		patience: udevPatience,
	}.look()
}

// look looks for the rule now: later the disk that it lies on may be one that was suspended.
func (u udev) look() udev {
	for _, path := range u.rules {
		if _, err := os.Stat(path); err == nil {
			u.ruled = true
		}
	}
	return u
}

// answers reports whether udev will decrement a semaphore.
func (u udev) answers() bool {
	return u.ruled && exists(u.control)
}

// cookie is a semaphore that udev decrements when it has dealt with an event.
type cookie struct {
	key      uint32 // 0: none
	id       uintptr
	patience time.Duration
}

// begin makes a cookie for one call. Where udev does not answer, or the kernel has no
// semaphore left, the cookie is empty.
func (u udev) begin() cookie {
	if !u.answers() {
		return cookie{}
	}
	for range 100 { // 65,535 keys; few are in use
		key := cookieMagic + 1 + rand.Uint32N(cookieMask)
		id, _, errno := unix.Syscall(unix.SYS_SEMGET, uintptr(key), 1, 0o600|ipcCreate|ipcExclusive)
		if errno == unix.EEXIST {
			continue
		}
		if errno != 0 {
			return cookie{}
		}
		k := cookie{key, id, u.patience}
		if _, errno := semctl(id, semSetValue, 1); errno != 0 {
			k.end()
			return cookie{}
		}
		return k
	}
	return cookie{}
}

// eventNr is what the call hands to the kernel.
func (k cookie) eventNr() uint32 { return flagPrimary | k.key&cookieMask }

// wait waits for udev, if there is an event for it to deal with, and ends the cookie.
func (k cookie) wait(generated bool) {
	defer k.end()
	if k.key == 0 || !generated {
		return
	}
	pause := udevPause
	for end := time.Now().Add(k.patience); time.Now().Before(end); {
		left, errno := semctl(k.id, semGetValue, 0)
		if errno != 0 || left == 0 {
			return
		}
		time.Sleep(pause)
		pause = min(2*pause, udevMaxPause)
	}
}

// end removes the semaphore.
func (k cookie) end() {
	if k.key != 0 {
		// It may have been removed already, by dmsetup udevcomplete_all.
		_, _ = semctl(k.id, ipcRemove, 0)
	}
}

// From include/uapi/linux/ipc.h and sem.h.
const (
	ipcCreate    = 0o1000
	ipcExclusive = 0o2000
	ipcRemove    = 0
	semGetValue  = 12
	semSetValue  = 16
)

func semctl(id, cmd, value uintptr) (uintptr, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_SEMCTL, id, 0, cmd, value, 0, 0)
	return n, errno
}
