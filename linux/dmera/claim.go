package dmera

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/format/era"
	"tidemark/linux/atomicfile"
)

// A claim is the ownership of a device's metadata snapshot. Its owner holds a lock, which
// the kernel takes away when the process dies. Before it takes a snapshot it writes down
// what tells this snapshot from another program's:
//
//	RunDir/era/NAME.lock    locked while the claim is held; its content is the record
//	StateDir/era/NAME.json  the record, for after a reboot; best effort
//
// A held snapshot is ours when the lock is free, the record names this metadata, and the
// record names the snapshot's era. A record names no era yet when its process died before
// it could: then each younger snapshot is ours. So a snapshot that another program takes
// after a process of ours died between Prepare and TakeSnapshot counts as ours, once, and
// is dropped; the reads of that program fail then.
type claim struct {
	lock *os.File
	keep string // path of the record's copy
	rec  record
	old  *record // of the process before
}

// record says whose a snapshot is.
type record struct {
	Version  int          `json:"version"`
	Device   string       `json:"device"`
	Identity era.Identity `json:"identity"`
	PID      int          `json:"pid"`
	Era      era.Era      `json:"era"`            // the current one when it was written
	Held     era.Era      `json:"held,omitempty"` // the snapshot's; 0: not known yet
}

const recordVersion = 1

// lockSize is the length of a lock file with a record, in bytes. One write replaces all
// of it, so that a process that is killed leaves the old record or the new.
const lockSize = 1024

// newClaim takes the lock.
func (d *Device) newClaim() (*claim, error) {
	base := filepath.Join("era", strings.ReplaceAll(d.Name(), "/", "_"))
	path := filepath.Join(d.o.RunDir, base+".lock")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("dmera: %s: %w", d.Name(), err)
	}
	lock, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("dmera: %s: %w", d.Name(), err)
	}
	c := &claim{lock: lock, keep: filepath.Join(d.o.StateDir, base+".json")}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	locked := err == nil
	if locked || errors.Is(err, unix.EWOULDBLOCK) {
		c.old, err = c.read()
	}
	if err == nil && !locked {
		holder := 0
		if c.old != nil {
			holder = c.old.PID
		}
		err = fmt.Errorf("%w by process %d", ErrHeld, holder)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("dmera: %s: %w", d.Name(), err), lock.Close())
	}
	return c, nil
}

// read returns the record that is there, nil when there is none that can be
// understood: then no held snapshot counts as ours.
func (c *claim) read() (*record, error) {
	inLock := make([]byte, lockSize)
	n, err := c.lock.ReadAt(inLock, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var r record
	if json.Unmarshal(inLock[:n], &r) == nil && r.Version == recordVersion {
		return &r, nil
	}
	var kept record
	err = atomicfile.ReadJSON(c.keep, &kept)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, atomicfile.ErrDamaged):
		return nil, nil
	case err != nil:
		return nil, err
	case kept.Version != recordVersion:
		return nil, nil
	}
	return &kept, nil
}

// took reports whether the process that left the record took the snapshot with that
// superblock.
func (c *claim) took(s era.Superblock) bool {
	r := c.old
	switch {
	case r == nil || r.Identity != s.Identity:
		return false
	case r.Held != 0:
		return r.Held == s.Era
	}
	return s.Era > r.Era
}

// write writes the record down in both places.
func (c *claim) write(r record) error {
	r.Version, r.PID = recordVersion, os.Getpid()
	c.rec = r
	if err := c.writeLock(); err != nil {
		return err
	}
	// Where StateDir is not writable (an initramfs, a read-only root), a snapshot that
	// a power cut leaves counts as another program's.
	_ = replace(c.keep, r)
	return nil
}

func (c *claim) writeLock() error {
	b, err := json.Marshal(c.rec)
	if err == nil && len(b) > lockSize {
		err = fmt.Errorf("a record of %d bytes, the limit is %d", len(b), lockSize)
	}
	if err == nil {
		_, err = c.lock.WriteAt(append(b, bytes.Repeat([]byte("\n"), lockSize-len(b))...), 0)
	}
	if err != nil {
		return fmt.Errorf("dmera: %s: %s: %w", c.rec.Device, c.lock.Name(), err)
	}
	return nil
}

// taken sets the era of the snapshot in the lock file's record; 0 means that it is not
// known yet. A caller may hold filesystems frozen, and a write to one of these would wait
// for ever: taken writes only to a RunDir in memory. In another RunDir the record names
// no era.
func (c *claim) taken(e era.Era) error {
	if c.rec.Held == e {
		return nil
	}
	c.rec.Held = e
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(c.lock.Fd()), &st); err != nil || st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
		return nil
	}
	return c.writeLock()
}

// release removes the record and then gives the lock up.
func (c *claim) release() error {
	err := os.Remove(c.keep)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EROFS) {
		err = nil
	}
	if err = errors.Join(err, c.lock.Truncate(0), c.lock.Close()); err != nil {
		return fmt.Errorf("dmera: %w", err)
	}
	return nil
}

// replace writes a record in one step, durably.
func replace(path string, r any) error {
	if err := atomicfile.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.WriteJSON(path, atomicfile.Options{Durable: true}, r)
}
