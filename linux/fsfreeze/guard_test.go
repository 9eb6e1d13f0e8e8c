package fsfreeze

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A freeze that is given up is told to thaw twice, by Freeze and by Close.
func TestAWatchdogThatLeavesAnOrderUnreadIsStillHeard(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	g := &Guard{conn: os.NewFile(uintptr(fds[0]), "watchdog"), events: make(chan report, 1)}
	defer g.conn.Close()
	if err := g.order(order{cmd: cmdThaw}); err != nil {
		t.Fatal(err)
	}
	(&watchdog{conn: fds[1]}).send(report{event: evLeaving})
	unix.Close(fds[1])
	if !g.listen() {
		t.Error("the guard takes the watchdog for killed, and the filesystems for still frozen")
	}
}
