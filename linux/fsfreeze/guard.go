package fsfreeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/reexec"
)

// Guard is an armed watchdog and the filesystems in its care.
type Guard struct {
	filesystems []Filesystem
	conn        *os.File
	process     *exec.Cmd
	grace       grace         // to be reset in the watchdog's place
	events      chan report   // from the watchdog; closed when it is gone
	broken      chan struct{} // closed when a freeze ended without being asked
	done        chan struct{} // closed when nothing is frozen and the watchdog is reaped

	mu       sync.Mutex
	state    []state
	isBroken bool
	err      error // the first thing that went wrong
	began    time.Time
	still    time.Time
	ended    time.Time
}

// armPatience is far above what a loaded machine needs to start a process;
// thawPatience is how often a watchdog that does not thaw is woken.
const (
	armPatience  = 30 * time.Second
	thawPatience = time.Second
)

// Arm starts a watchdog for the filesystems and freezes nothing yet. It takes the
// filesystems' files over, also when it fails. Freeze goes through them in the order
// given, Thaw in the opposite order. The error wraps ErrNoWatchdog. Close the Guard when
// done.
func Arm(ctx context.Context, filesystems []Filesystem) (*Guard, error) {
	g := &Guard{
		filesystems: filesystems,
		events:      make(chan report, 8*(len(filesystems)+1)),
		broken:      make(chan struct{}),
		done:        make(chan struct{}),
		state:       make([]state, len(filesystems)),
	}
	if err := g.start(); err != nil {
		g.closeFiles()
		return nil, fmt.Errorf("fsfreeze: %w: %w", ErrNoWatchdog, err)
	}
	go g.keep()
	ctx, cancel := context.WithTimeout(ctx, armPatience)
	defer cancel()
	r, err := g.next(ctx)
	if err == nil && r.event != evReady {
		err = fmt.Errorf("first report %q", r.event)
	}
	if err != nil {
		g.kill()
		return nil, fmt.Errorf("fsfreeze: %w: %w", ErrNoWatchdog, err)
	}
	return g, nil
}

// start runs this program's own image again: also when its file was replaced.
func (g *Guard) start() error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "watchdog")
	defer theirs.Close()
	g.conn = os.NewFile(uintptr(fds[0]), "watchdog")
	if err := unix.SetNonblock(fds[1], false); err != nil {
		return errors.Join(os.NewSyscallError("fcntl", err), g.conn.Close())
	}
	g.grace = openGrace(gracePath)
	g.process = reexec.Command(Watchdog, strconv.Itoa(len(g.filesystems)))
	g.process.ExtraFiles = []*os.File{theirs}
	for _, f := range g.filesystems {
		g.process.ExtraFiles = append(g.process.ExtraFiles, f.Dir)
	}
	if err := g.process.Start(); err != nil {
		g.grace.close()
		return errors.Join(err, g.conn.Close())
	}
	return nil
}

// keep reads the watchdog's reports until the watchdog is gone, reaps it, and thaws what
// it left frozen. It outlives a Freeze whose context ended.
func (g *Guard) keep() {
	defer close(g.done)
	left := g.listen()
	g.conn.Close()
	_ = g.process.Wait() // its reports came over the socket
	if !left {
		g.takeOver()
		g.grace.shorten(false)
	}
	g.grace.close()
	g.mu.Lock()
	if g.ended.IsZero() {
		g.ended = time.Now()
	}
	g.mu.Unlock()
	g.closeFiles()
	close(g.events)
}

// listen returns whether the watchdog said that nothing is frozen any more.
func (g *Guard) listen() (left bool) {
	buf := make([]byte, reportSize+1)
	for {
		n, err := g.conn.Read(buf)
		if errors.Is(err, unix.ECONNRESET) {
			// The watchdog ended with an order unread: one to thaw, after another one or
			// after its time was up. The kernel says so once, ahead of the reports that
			// are still to be read.
			continue
		}
		if err != nil || n == 0 {
			return left
		}
		r, err := decodeReport(buf[:n], len(g.filesystems))
		if err != nil {
			g.fail(fmt.Errorf("fsfreeze: watchdog: %w", err), true)
			return left
		}
		left = left || r.event == evLeaving
		g.record(r)
		select {
		case g.events <- r:
		default: // no caller waits for so many
		}
	}
}

// record updates the guard by a report.
func (g *Guard) record(r report) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch r.event {
	case evFreezing:
		g.state[r.index] = stateFreezing
	case evFrozen:
		g.state[r.index] = stateIdle
		if r.errno == 0 {
			g.state[r.index] = stateFrozen
		}
	case evStill:
		g.still = time.Now()
	case evThawed:
		if r.errno == 0 || r.errno == unix.EINVAL {
			g.state[r.index] = stateIdle
		}
		if r.errno != 0 {
			g.failLocked(stepError("thaw", g.filesystems[r.index].Name, r.errno), true)
		}
	case evLeaving:
		g.ended = time.Now()
	case evExpired:
		g.failLocked(fmt.Errorf("fsfreeze: %w", ErrExpired), true)
	}
}

// takeOver thaws the filesystems that a dead watchdog left frozen. A call that was under
// way may have failed because another program had frozen the filesystem; takeOver thaws it
// all the same, since otherwise the machine might hang.
func (g *Guard) takeOver() {
	g.mu.Lock()
	held := false
	for _, s := range g.state {
		held = held || s != stateIdle
	}
	if held {
		g.failLocked(fmt.Errorf("fsfreeze: %w: the watchdog was killed", ErrBroken), true)
	}
	g.mu.Unlock()
	for i := len(g.state) - 1; i >= 0; i-- {
		if g.state[i] == stateIdle {
			continue
		}
		f := g.filesystems[i]
		errno := thaw(int(f.Dir.Fd()))
		if errno != 0 && errno != unix.EINVAL {
			g.fail(stepError("thaw", f.Name, errno), true)
		}
	}
}

func (g *Guard) fail(err error, broken bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.failLocked(err, broken)
}

func (g *Guard) failLocked(err error, broken bool) {
	if g.err == nil {
		g.err = err
	}
	if broken && !g.isBroken {
		g.isBroken = true
		close(g.broken)
	}
}

func (g *Guard) closeFiles() {
	for _, f := range g.filesystems {
		f.Dir.Close()
	}
}

// next returns the watchdog's next report.
func (g *Guard) next(ctx context.Context) (report, error) {
	select {
	case r, ok := <-g.events:
		if !ok {
			return report{}, fmt.Errorf("%w: it has gone", ErrNoWatchdog)
		}
		return r, nil
	case <-ctx.Done():
		return report{}, context.Cause(ctx)
	}
}

func (g *Guard) order(o order) error {
	_, err := g.conn.Write(o.encode())
	if err != nil {
		return fmt.Errorf("fsfreeze: %w: %w", ErrNoWatchdog, err)
	}
	return nil
}

// kill ends a watchdog that did not start in time; nothing is frozen then.
func (g *Guard) kill() {
	_ = g.process.Process.Kill() // it may be gone already
}
