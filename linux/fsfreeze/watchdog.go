package fsfreeze

import (
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/reexec"
)

// Watchdog is the part of this program that freezes and thaws, for reexec.Main. Its exit
// status is 0 when everything that was frozen is thawed.
var Watchdog = reexec.Part{Name: "tidemark-freeze-watchdog", Run: runWatchdog}

// Descriptors that the watchdog is started with.
const (
	connFD     = 3
	firstDirFD = 4
)

// runWatchdog serves the process that started this one.
func runWatchdog(args []string) int {
	if len(args) != 1 {
		return 2
	}
	count, err := strconv.Atoi(args[0])
	if err != nil || count < 0 {
		return 2
	}
	w := &watchdog{conn: connFD, state: make([]state, count), grace: openGrace(gracePath)}
	for i := range count {
		w.dirs = append(w.dirs, firstDirFD+i)
	}
	w.harden()
	return w.run()
}

type state byte

const (
	stateIdle state = iota
	stateFreezing
	stateFrozen
)

// A watchdog is the whole of the second process. From the moment it is ready it
// opens no file and writes to nothing but its socket.
type watchdog struct {
	conn  int
	dirs  []int
	grace grace

	mu      sync.Mutex
	state   []state
	stopped bool // no further freeze; what is frozen gets thawed
	failed  bool // a thaw did not work
}

// harden protects the watchdog (see reexec.Harden). Each step is best effort: the watchdog
// works without it.
func (w *watchdog) harden() {
	// Every path is walked once with a file that nothing happens to, so that its
	// code and its threads are there: the socket lies on a filesystem that can
	// neither be frozen nor thawed.
	freeze(w.conn)
	call(w.conn, fiThaw)
	reexec.Harden()
}

func (w *watchdog) run() int {
	orders := make(chan order)
	go w.receive(orders)
	w.send(report{event: evReady})
	work := make(chan report) // the worker's last report
	var deadline <-chan time.Time
	busy, leaving := false, false
	for {
		select {
		case o, ok := <-orders:
			switch {
			case !ok || o.cmd == cmdThaw:
				orders, deadline, leaving = nil, nil, true
				w.thawAll()
			case o.cmd == cmdSync && !busy:
				busy = true
				go w.worker(w.syncAll, work)
			case o.cmd == cmdFreeze && !busy:
				busy, deadline = true, after(o.max)
				go w.worker(w.freezeAll, work)
			}
		case <-deadline:
			w.send(report{event: evExpired})
			orders, deadline, leaving = nil, nil, true
			w.thawAll()
		case r := <-work:
			// The caller sends the next order after this report; a busy watchdog drops it.
			busy = false
			if r.event != 0 {
				w.send(r)
			}
		}
		if leaving && !busy {
			return w.leave()
		}
	}
}

// after is time.After, but never for 0.
func after(d time.Duration) <-chan time.Time {
	if d == 0 {
		return nil
	}
	return time.After(d)
}

// worker makes the calls that may block.
func (w *watchdog) worker(do func() report, done chan<- report) { done <- do() }

// leave reports that nothing is frozen any more, if that is so.
func (w *watchdog) leave() int {
	w.grace.shorten(false)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed {
		return 1
	}
	w.send(report{event: evLeaving})
	return 0
}

// receive turns packets into orders until the other process is gone. A malformed packet
// counts as its death.
func (w *watchdog) receive(orders chan<- order) {
	defer close(orders)
	buf := make([]byte, orderSize+1)
	for {
		n, err := unix.Read(w.conn, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		o, err := decodeOrder(buf[:n])
		if err != nil {
			return
		}
		orders <- o
		if o.cmd == cmdThaw {
			return
		}
	}
}

// send never blocks and never fails: a reader that is stopped or gone must not hold up
// the watchdog.
func (w *watchdog) send(r report) {
	_ = unix.Sendto(w.conn, r.encode(), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
}

func (w *watchdog) syncAll() report {
	for i, fd := range w.dirs {
		errno, _ := unix.Syncfs(fd).(unix.Errno)
		w.send(report{evSynced, i, errno})
	}
	return report{event: evSyncEnd}
}

// freezeAll freezes in order. It passes over filesystems of a kind that cannot be frozen;
// after any other failure it thaws the rest.
func (w *watchdog) freezeAll() report {
	w.grace.shorten(true)
	for i := range w.dirs {
		errno, more := w.freezeOne(i)
		if !more {
			return report{}
		}
		if errno != 0 && errno != unix.EOPNOTSUPP {
			w.thawAll()
			return report{}
		}
	}
	return report{event: evStill}
}

func (w *watchdog) freezeOne(i int) (errno unix.Errno, more bool) {
	w.mu.Lock()
	if w.stopped {
		w.mu.Unlock()
		return 0, false
	}
	w.state[i] = stateFreezing
	w.mu.Unlock()
	w.send(report{evFreezing, i, 0})
	errno = freeze(w.dirs[i])
	w.mu.Lock()
	w.state[i] = stateIdle
	if errno == 0 {
		w.state[i] = stateFrozen
	}
	stopped := w.stopped
	w.mu.Unlock()
	w.send(report{evFrozen, i, errno})
	if stopped {
		// The order to thaw came while the call was running. thawAll may be waiting
		// for a filesystem that lies on this one: thaw it here and now.
		w.thawOne(i)
	}
	return errno, !stopped
}

// thawAll thaws all that is frozen, the last filesystem first, and prevents further
// freezes.
func (w *watchdog) thawAll() {
	w.mu.Lock()
	w.stopped = true
	w.mu.Unlock()
	for i := len(w.dirs) - 1; i >= 0; i-- {
		w.thawOne(i)
	}
}

func (w *watchdog) thawOne(i int) {
	w.mu.Lock()
	mine := w.state[i] == stateFrozen
	if mine {
		w.state[i] = stateIdle
	}
	w.mu.Unlock()
	if !mine {
		return
	}
	errno := thaw(w.dirs[i])
	if errno != 0 && errno != unix.EINVAL {
		w.mu.Lock()
		w.failed = true
		w.mu.Unlock()
	}
	w.send(report{evThawed, i, errno})
}
