// Package running tells other processes how far a run is that updates a mirror.
//
// For most uses, ask [On] with the folder of a mirror; a run has a [Publisher]. A Publisher
// serves one goroutine at a time.
package running

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/atomicfile"
	"tidemark/track/bpf"
	"tidemark/transfer"
	"tidemark/transfer/names"
	"tidemark/transfer/target"
)

// Run is how far the run has come that is updating a mirror at the moment.
type Run struct {
	PID   int       `json:"pid"`
	Since time.Time `json:"since"`
	Phase string    `json:"phase"` // see transfer.Event
	Pass  int       `json:"pass,omitempty"`
	Done  int64     `json:"done_bytes"` // of the phase
	Total int64     `json:"total_bytes"`
}

// publishEvery is the least time between two writes of how far a run is.
const publishEvery = time.Second

// Publisher tells other processes how far a run is, in a folder of the run folder for each
// of its targets. The folder is locked for as long as the run lives: what a run leaves that
// was killed is told from that of a live one by the lock. It writes when the run tells of
// its progress, and so never while a view is open.
type Publisher struct {
	next   func(transfer.Event)
	dirs   []*os.File
	now    Run
	last   time.Time
	failed error // the first: nothing is published after it
}

func runFolder(runDir, folder string) string {
	if runDir == "" {
		runDir = bpf.DefaultRunDir
	}
	return filepath.Join(runDir, "runs", target.Hashed(names.Absolute(folder)))
}

const progressFile = "progress"

// New returns a Publisher of this process that passes events on to next.
func New(next func(transfer.Event)) *Publisher {
	return &Publisher{next: next, now: Run{PID: os.Getpid(), Since: time.Now()}}
}

// Add publishes what the run does with one target, whose folder is locked by this run. After
// an error nothing is published.
func (p *Publisher) Add(runDir, folder string) error {
	p.failed = p.add(runDir, folder)
	return p.failed
}

func (p *Publisher) add(runDir, folder string) error {
	path := runFolder(runDir, folder)
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	p.dirs = append(p.dirs, dir)
	// No other run has it: who asks whether there is one holds the lock for a moment.
	for {
		if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Tell passes an event on, and publishes it now and then.
func (p *Publisher) Tell(e transfer.Event) {
	p.next(e)
	now := time.Now()
	if p.failed != nil || e.Phase == "" || now.Sub(p.last) < publishEvery {
		return
	}
	p.last = now
	p.now.Phase, p.now.Pass, p.now.Done, p.now.Total = e.Phase, e.Pass, e.Done, e.Total
	for _, dir := range p.dirs {
		if p.failed = atomicfile.WriteJSON(filepath.Join(dir.Name(), progressFile), atomicfile.Options{}, p.now); p.failed != nil {
			return
		}
	}
}

// Close takes back what was published. The error is the first that kept it from being so.
func (p *Publisher) Close() error {
	errs := []error{p.failed}
	for _, dir := range p.dirs {
		errs = append(errs, os.RemoveAll(dir.Name()), dir.Close())
	}
	p.dirs = nil
	return errors.Join(errs...)
}

// On returns how far the run is that is updating the mirror with that folder, nil
// where there is none.
func On(runDir, folder string) (*Run, error) {
	path := runFolder(runDir, folder)
	dir, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	switch err := unix.Flock(int(dir.Fd()), unix.LOCK_SH|unix.LOCK_NB); {
	case err == nil:
		return nil, nil // the run was killed
	case !errors.Is(err, unix.EWOULDBLOCK):
		return nil, &os.PathError{Op: "lock", Path: path, Err: err}
	}
	r := &Run{}
	err = atomicfile.ReadJSON(filepath.Join(path, progressFile), r)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it has just begun, or just ended
	}
	return r, err
}
