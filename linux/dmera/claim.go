package dmera

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/format/era"
)

// A claim is the ownership of a device's metadata snapshot. Who has it holds a
// lock, which the kernel takes away when the process dies, and has written down
// what tells his snapshot from another program's, before he takes it:
//
//	RunDir/era/NAME.lock    locked while the claim is held; never removed
//	RunDir/era/NAME.json    the record
//	StateDir/era/NAME.json  the same, for after a reboot; best effort
//
// A held snapshot is ours when the lock is free, the record is of this metadata,
// and the snapshot is the one that the record tells of, or is younger than a record
// that does not tell yet because its process died before it could. So one that
// another program took after a process of ours had died between Prepare and its
// snapshot counts as ours, once, and is dropped; the other program's reads fail then.
type claim struct {
	lock *os.File
	run  string // path of the record
	keep string // path of its copy
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

// newClaim takes the lock.
func (d *Device) newClaim() (*claim, error) {
	dir := filepath.Join(d.o.RunDir, "era")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("dmera: %s: %w", d.Name(), err)
	}
	base := strings.ReplaceAll(d.Name(), "/", "_")
	c := &claim{
		run:  filepath.Join(dir, base+".json"),
		keep: filepath.Join(d.o.StateDir, "era", base+".json"),
	}
	lock, err := os.OpenFile(filepath.Join(dir, base+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("dmera: %s: %w", d.Name(), err)
	}
	c.lock = lock
	if c.old, err = c.read(); err != nil {
		return nil, errors.Join(fmt.Errorf("dmera: %s: %w", d.Name(), err), lock.Close())
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		err = fmt.Errorf("dmera: %s: %w by process %d", d.Name(), ErrHeld, c.holder())
	case err != nil:
		err = fmt.Errorf("dmera: %s: lock %s: %w", d.Name(), lock.Name(), err)
	default:
		// Who held the lock may have written since.
		c.old, err = c.read()
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return c, nil
}

func (c *claim) holder() int {
	if c.old == nil {
		return 0
	}
	return c.old.PID
}

// read returns the record that is there, nil when there is none that can be
// understood: then nothing that is held counts as ours.
func (c *claim) read() (*record, error) {
	for _, path := range []string{c.run, c.keep} {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var r record
		if json.Unmarshal(b, &r) == nil && r.Version == recordVersion {
			return &r, nil
		}
	}
	return nil, nil
}

// took says whether the snapshot with that superblock was taken by the process that
// left the record.
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
	if err := replace(c.run, r, false); err != nil {
		return fmt.Errorf("dmera: %s: %w", r.Device, err)
	}
	// Where this is not to be had (an initramfs, a root that is read-only), a
	// snapshot that a power cut leaves counts as another program's.
	_ = replace(c.keep, r, true)
	return nil
}

// taken adds the era of the snapshot to the record; 0 says again that it is not known
// yet. It may be called under a freeze, so it writes only to memory; elsewhere the
// record never tells.
func (c *claim) taken(e era.Era) error {
	if c.rec.Held == e {
		return nil
	}
	c.rec.Held = e
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(c.run), &st); err != nil || st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
		return nil
	}
	if err := replace(c.run, c.rec, false); err != nil {
		return fmt.Errorf("dmera: %s: %w", c.rec.Device, err)
	}
	return nil
}

// release removes the record and then gives the lock up.
func (c *claim) release() error {
	var errs []error
	for _, path := range []string{c.run, c.keep} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) && (path == c.run || !errors.Is(err, unix.EROFS)) {
			errs = append(errs, fmt.Errorf("dmera: %w", err))
		}
	}
	return errors.Join(append(errs, c.lock.Close())...)
}

// replace writes a record in one step. A record that shall survive a power cut is
// synced, and so is its folder.
func replace(path string, r any, durable bool) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".record-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && durable {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if !durable {
		return nil
	}
	return syncFolder(dir)
}

func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
