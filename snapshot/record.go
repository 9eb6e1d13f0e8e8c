package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/atomicfile"
	"tidemark/linux/dm"
	"tidemark/linux/sysfs"
	"tidemark/track/history"
)

// Snapshot is a snapshot of one or several devices. What is exported of it is in its record.
type Snapshot struct {
	Version  int       `json:"version"`
	Name     string    `json:"name"`
	Created  time.Time `json:"created"`
	Boot     string    `json:"boot"` // at whose end it ends, unless it is persistent
	Chunk    int64     `json:"chunk"`
	Writable bool      `json:"writable"`
	// Up says that all of it is there. Without it a run that made or destroyed it was cut off,
	// unless that is under way.
	Up      bool      `json:"up"`
	Volumes []*Volume `json:"volumes"`
	// Transient is for one that ends with the process that made it, which holds a lock as long as
	// it lives.
	Transient bool `json:"transient,omitempty"`
	// Persistent is for one that outlives reboots, by [Assemble], unless it is incremental.
	Persistent bool `json:"persistent,omitempty"`
	// Rollback says that what it holds is being put back into the origins.
	Rollback bool `json:"rollback,omitempty"`
	// Incremental is for one without data, of which it is followed what changes since its instant. When
	// it is not Up, devices and stores of before or of the next one may be there.
	Incremental bool              `json:"incremental,omitempty"`
	Link        string            `json:"link,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`

	// Frozen is how long users of the devices waited, in the process that made it.
	Frozen time.Duration `json:"-"`

	o     Options
	alive *os.File // the lock of a transient one
	// groups let go of LVM's volume groups that must not change while a transient one lives.
	groups []func() error
}

const recordVersion = 1

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$`)

func (o Options) folder() string { return filepath.Join(o.StateDir, "snapshots") }

// folder is where the record is.
func (s *Snapshot) folder() string {
	if s.Persistent {
		return EarlyDir
	}
	return s.o.folder()
}

func (s *Snapshot) record() string { return filepath.Join(s.folder(), s.Name+".json") }

// lock waits until no other process of ours changes snapshots.
func (o Options) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(o.Track.RunDir, 0o755); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return history.Lock(ctx, filepath.Join(o.Track.RunDir, "snapshots.lock"))
}

// hold locks a transient snapshot for as long as this process lives. Such a lock that is free says
// that nobody needs the snapshot.
func (s *Snapshot) hold() (err error) {
	s.alive, err = os.OpenFile(s.lockPath(), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Flock(int(s.alive.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return fmt.Errorf("snapshot: %s: lock: %w", s.Name, err)
	}
	return nil
}

func (s *Snapshot) lockPath() string {
	return filepath.Join(s.o.Track.RunDir, "snapshot-"+s.Name+".lock")
}

// locked reports whether the process that made a transient snapshot lives.
func (s *Snapshot) locked() bool {
	f, err := os.Open(s.lockPath())
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
}

// write stores the record.
func (s *Snapshot) write() error {
	err := atomicfile.MkdirAll(s.folder(), 0o755)
	if err == nil {
		err = atomicfile.WriteJSON(s.record(), atomicfile.Options{Durable: true}, s)
	}
	if err != nil {
		return fmt.Errorf("snapshot: %s: %w", s.Name, err)
	}
	return nil
}

// forget removes the record.
func (s *Snapshot) forget() error {
	err := os.Remove(s.record())
	if err == nil {
		err = atomicfile.SyncDir(s.folder())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("snapshot: %s: %w", s.Name, err)
	}
	for _, v := range s.Volumes {
		_ = os.Remove(s.ListPath(v)) // mostly there is none
	}
	if s.Transient {
		_ = os.Remove(s.lockPath()) // nobody asks for it any more
	}
	return nil
}

// Find returns the snapshot of a name. The error wraps ErrNotFound.
func Find(o Options, name string) (*Snapshot, error) {
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("snapshot: %q: %w", name, ErrNotFound)
	}
	s, err := find(o, o.folder(), name)
	if errors.Is(err, ErrNotFound) {
		return find(o, EarlyDir, name)
	}
	return s, err
}

// find reads the record in a folder.
func find(o Options, dir, name string) (*Snapshot, error) {
	s := &Snapshot{o: o}
	path := filepath.Join(dir, name+".json")
	err := atomicfile.ReadJSON(path, s)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("snapshot: %s: %w", name, ErrNotFound)
	}
	if err == nil && (s.Version != recordVersion || s.Name != name || s.Persistent != (dir == EarlyDir)) {
		err = fmt.Errorf("%w: version %d, name %q", atomicfile.ErrDamaged, s.Version, s.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot: %s: %w", path, err)
	}
	return s, nil
}

// again reads the record again, with the lock held: another process may have changed it since.
func (s *Snapshot) again() error {
	now, err := Find(s.o, s.Name)
	if err != nil {
		return err
	}
	now.alive, now.groups, now.Frozen = s.alive, s.groups, s.Frozen
	*s = *now
	return nil
}

// List returns all snapshots, the oldest first, those that a reboot has ended among them.
func List(o Options) ([]*Snapshot, error) {
	list, err := listIn(o, o.folder())
	early, eerr := listIn(o, EarlyDir)
	list = append(list, early...)
	slices.SortFunc(list, func(a, b *Snapshot) int { return a.Created.Compare(b.Created) })
	return list, errors.Join(err, eerr)
}

// listIn returns those whose records are in a folder.
func listIn(o Options, dir string) (list []*Snapshot, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !validName.MatchString(name) {
			continue
		}
		s, ferr := find(o, dir, name)
		if errors.Is(ferr, ErrNotFound) {
			continue
		}
		if err = errors.Join(err, ferr); ferr == nil {
			list = append(list, s)
		}
	}
	return list, err
}

// Ended reports whether the boot in which the snapshot was made has ended, and the snapshot with it.
func (s *Snapshot) Ended() (bool, error) {
	if s.Persistent && !s.Incremental || s.ofLVM() {
		return false, nil
	}
	return s.OfBefore()
}

// OfBefore reports whether the snapshot was made, or taken up by [Snapshot.Reload], before the last boot.
func (s *Snapshot) OfBefore() (bool, error) {
	boot, err := sysfs.BootID()
	return err == nil && boot != s.Boot, err
}

// Repair ends what a crash, or a reboot, has left, and tells what it did. What it cannot end, as
// where a filesystem is not mounted, it leaves for the next time, with an error. Of persistent
// snapshots it notes what [Assemble] will ask for at the next boot, and it takes up rollbacks.
func Repair(ctx context.Context, o Options) (done []string, err error) {
	unlock, err := o.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return o.repair(ctx)
}

// repair is Repair with the lock held.
func (o Options) repair(ctx context.Context) (done []string, err error) {
	err = errors.Join(atomicfile.Sweep(o.folder()), atomicfile.Sweep(EarlyDir))
	list, lerr := List(o)
	err = errors.Join(err, lerr)
	if len(list) == 0 {
		return nil, err
	}
	ctl, derr := dm.Open()
	if derr != nil {
		return nil, errors.Join(err, derr)
	}
	defer ctl.Close()
	for _, s := range list {
		if s.Up && !s.Incremental {
			err = errors.Join(err, s.guard(ctl))
		}
		if s.lasting() {
			told, perr := s.keep(ctx, ctl)
			done, err = append(done, told...), errors.Join(err, perr)
			continue
		}
		ended, eerr := s.Ended()
		lives := s.Up && (s.Incremental || !ended && (!s.Transient || s.locked()))
		if eerr != nil || lives {
			err = errors.Join(err, eerr)
			continue
		}
		if s.Incremental && !ended {
			if berr := s.bare(ctx, ctl); berr != nil {
				err = errors.Join(err, fmt.Errorf("a change of the mode of the snapshot %s was cut off, and cannot be ended yet: %w", s.Name, berr))
			} else {
				done = append(done, fmt.Sprintf("a change of the mode of the snapshot %s was cut off: it is incremental", s.Name))
			}
			continue
		}
		why := "a command was cut off"
		if ended {
			why = "the machine was booted"
		}
		if s.Rollback {
			why = "it was rolled back to"
		}
		if derr := s.takeApart(ctx, ctl, false); derr != nil {
			err = errors.Join(err, fmt.Errorf("the snapshot %s is over, because %s, and cannot be removed yet: %w", s.Name, why, derr))
			continue
		}
		done = append(done, fmt.Sprintf("the snapshot %s is over, because %s, and was removed", s.Name, why))
	}
	return done, err
}
