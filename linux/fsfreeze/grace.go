package fsfreeze

import "golang.org/x/sys/unix"

// gracePath makes the kernel wait for grace periods of RCU in microseconds instead of
// some ten milliseconds each, by interrupting the other processors (sysfs, kernel/ksysfs.c).
// A freeze waits for three of them (percpu_down_write in fs/super.c), and so does every
// cut of an epoch: they are most of the time that users wait (docs/design/0006).
const gracePath = "/sys/kernel/rcu_expedited"

// grace is the open switch for short grace periods; -1 where it is left alone, because it
// cannot be written to or is on already.
type grace int

// openGrace opens the switch while nothing is frozen yet.
func openGrace(path string) grace {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	now := make([]byte, 2)
	if n, err := unix.Pread(fd, now, 0); err != nil || n < 1 || now[0] != '0' {
		unix.Close(fd)
		return -1
	}
	return grace(fd)
}

// shorten switches short grace periods on or off. It is best effort: without them a freeze
// takes longer. A guard that has found them off switches them off again, so that two freezes
// at once leave them off.
func (g grace) shorten(on bool) {
	value := []byte("0")
	if on {
		value[0] = '1'
	}
	if g >= 0 {
		_, _ = unix.Pwrite(int(g), value, 0) // best effort
	}
}

func (g grace) close() {
	if g >= 0 {
		unix.Close(int(g))
	}
}
