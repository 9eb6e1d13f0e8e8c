package dm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

// Entry is a device in the list of all.
type Entry struct {
	Name         string // as people read it
	UUID         string // "": none, or the kernel is older than 5.13
	Major, Minor uint32
	EventNr      uint32 // as in Info
}

// Dev returns the device's number.
func (e Entry) Dev() sysfs.Dev { return sysfs.Dev{Major: e.Major, Minor: e.Minor} }

// List returns all devices, in the kernel's order.
func (c *Control) List() ([]Entry, error) {
	r, err := c.run(&request{op: "list devices", cmd: cmdListDevices, flags: flagUUID})
	if err != nil {
		return nil, err
	}
	data, err := r.data()
	if err == nil {
		var all []Entry
		if all, err = parseEntries(data, r.version().Minor); err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("dm: list devices: %w", err)
}

// onDevice is a request about the device of a name.
func onDevice(op string, cmd command, name string) (*request, error) {
	kernel, err := checkName(name)
	if err != nil {
		return nil, fmt.Errorf("dm: %s %q: %w", op, name, err)
	}
	return &request{op: op, cmd: cmd, name: name, kernel: kernel}, nil
}

// runInfo makes a call whose reply is the state of a device.
func (c *Control) runInfo(r *request) (Info, error) {
	got, err := c.run(r)
	if err != nil {
		return Info{}, err
	}
	info, err := got.info()
	if err != nil {
		return Info{}, fmt.Errorf("dm: %s: %w", r.what(), err)
	}
	return info, nil
}

// Info returns the state of a device, or an error wrapping ErrNotFound.
func (c *Control) Info(name string) (Info, error) {
	r, err := onDevice("look at", cmdDevStatus, name)
	if err != nil {
		return Info{}, err
	}
	return c.runInfo(r)
}

// stateFor is Info on the way to another call, which its errors name.
func (c *Control) stateFor(r *request) (Info, error) {
	return c.runInfo(&request{op: r.op, cmd: cmdDevStatus, name: r.name, kernel: r.kernel})
}

// Find returns the state of the device with a number. The error wraps ErrNotFound
// when that is another kind of device, or none.
func (c *Control) Find(major, minor uint32) (Info, error) {
	dev := sysfs.Dev{Major: major, Minor: minor}
	if dev == (sysfs.Dev{}) {
		return Info{}, fmt.Errorf("dm: look at %v: %w", dev, ErrNotFound)
	}
	return c.runInfo(&request{op: "look at", cmd: cmdDevStatus, dev: dev})
}

// Resolve returns the state of the device that s means: a name, or the path of a
// block device, such as /dev/mapper/NAME, /dev/dm-3 or a link to one. A path in
// /dev/mapper is understood even when its node is missing.
func (c *Control) Resolve(s string) (Info, error) {
	if !strings.Contains(s, "/") {
		return c.Info(s)
	}
	var st unix.Stat_t
	err := unix.Stat(s, &st)
	switch {
	case errors.Is(err, fs.ErrNotExist) && filepath.Dir(s) == mapperDir:
		return c.Info(demangle(filepath.Base(s)))
	case err != nil:
		return Info{}, fmt.Errorf("dm: look at %s: %w", s, err)
	case st.Mode&unix.S_IFMT != unix.S_IFBLK:
		return Info{}, fmt.Errorf("dm: look at %s: %w: not a block device", s, ErrNotFound)
	}
	info, err := c.Find(unix.Major(st.Rdev), unix.Minor(st.Rdev))
	if err != nil {
		return Info{}, fmt.Errorf("%w (%s)", err, s)
	}
	return info, nil
}

// Create makes a device without a table, which has no sectors until the first Resume.
// uuid may be empty. The error wraps ErrExists when a device has the name or the UUID.
func (c *Control) Create(name, uuid string) (Info, error) {
	r, err := onDevice("create", cmdDevCreate, name)
	if err != nil {
		return Info{}, err
	}
	if r.uuid, err = checkUUID(uuid); err != nil {
		return Info{}, fmt.Errorf("dm: create %q: %w", name, err)
	}
	return c.runInfo(r)
}

// SuspendOptions say how to suspend. The zero value writes out and freezes a
// mounted filesystem, and waits until every request has completed.
type SuspendOptions struct {
	NoLockFS bool // leave a mounted filesystem alone
	NoFlush  bool // do not wait for requests that the target holds back; few targets do
}

// Suspend holds back all requests to a device, from the moment when those under way
// have completed, until Resume. A device that is suspended stays so.
//
// The caller must not need the device until Resume: a process that writes to a
// filesystem on it waits. Some targets (era) answer neither Status nor Message
// meanwhile; the call waits for Resume and cannot be interrupted.
func (c *Control) Suspend(name string, o SuspendOptions) (Info, error) {
	r, err := onDevice("suspend", cmdDevSuspend, name)
	if err != nil {
		return Info{}, err
	}
	r.flags = flagSuspend
	if o.NoLockFS {
		r.flags |= flagSkipLockFS
	}
	if o.NoFlush {
		r.flags |= flagNoFlush
	}
	return c.runInfo(r)
}

// Resume makes the inactive table, if there is one, the active one, lets requests
// go on, and waits for udev (see StartResume). When the device was not suspended and
// a table is waiting, the kernel suspends it first, as Suspend with no options.
func (c *Control) Resume(name string) (Info, error) {
	info, p, err := c.StartResume(name, ResumeOptions{})
	if err != nil {
		return Info{}, err
	}
	return info, p.Wait()
}

// ResumeHidden is Resume with Hidden.
func (c *Control) ResumeHidden(name string) (Info, error) {
	info, p, err := c.StartResume(name, ResumeOptions{Hidden: true})
	if err != nil {
		return Info{}, err
	}
	return info, p.Wait()
}

// ResumeOptions say how to resume. The zero value makes the device known to everybody.
type ResumeOptions struct {
	// Hidden is for a device that this program alone is to use: udev makes its node, and looks
	// at nothing on it, so that no link by UUID leads to it and nobody mounts it. Udev
	// remembers that for as long as there is the device.
	Hidden bool
}

// Pending is a change that udev may not have dealt with yet.
type Pending struct {
	wait func() error
}

// Wait returns when udev has dealt with the change, or has not answered within half a
// minute. It must be called once.
func (p *Pending) Wait() error { return p.wait() }

// StartResume is Resume without the wait for udev, which Pending does. To resume
// several devices that were suspended together, start all of them and then wait for
// each: udev may need one device to deal with another.
func (c *Control) StartResume(name string, o ResumeOptions) (Info, *Pending, error) {
	flags := uint32(0)
	if o.Hidden {
		flags = flagsHidden
	}
	r, err := onDevice("resume", cmdDevSuspend, name)
	if err != nil {
		return Info{}, nil, err
	}
	log := openKernelLog()
	defer log.close()
	cookie := c.udev.begin()
	r.eventNr = cookie.eventNr() | flags
	got, err := c.run(r)
	if err != nil {
		cookie.end()
		return Info{}, nil, c.resumeFailed(name, err, log)
	}
	info, err := got.info()
	if err != nil {
		cookie.end()
		return Info{}, nil, fmt.Errorf("dm: resume %q: %w", name, err)
	}
	wait := func() error {
		cookie.wait(got.Flags&flagUeventGenerated != 0)
		if err := c.nodes.make(info); err != nil {
			return fmt.Errorf("dm: resume %q: it runs, but: %w", name, err)
		}
		return nil
	}
	return info, &Pending{wait}, nil
}

// resumeFailed adds the reason why a device would not resume, as far as it can be told.
func (c *Control) resumeFailed(name string, err error, log kernelLog) error {
	info, ierr := c.Info(name)
	if ierr != nil {
		return err
	}
	if errors.Is(err, unix.EINVAL) && !info.ActiveTable && !info.InactiveTable {
		return fmt.Errorf("%w: it has no table: load one first", err)
	}
	said := log.about(info.Dev())
	if table, _, terr := c.Table(name); terr == nil && len(table) > 0 {
		return fmt.Errorf("%w: %s%s", err, blame(table), said)
	}
	return fmt.Errorf("%w%s", err, said)
}

// RemoveOptions say how to remove. The zero value tries once.
type RemoveOptions struct {
	// Deferred removes a device that is in use when the last user closes it;
	// Info.DeferredRemove says so until then. The message "@cancel_deferred_remove"
	// takes it back. Only udev then removes the node in /dev/mapper.
	Deferred bool
	// Patience is how long to try again while the device is in use: udev and
	// other programs open devices for moments.
	Patience time.Duration
}

// removePause is how long Remove waits before it tries again.
const removePause = 50 * time.Millisecond

// Remove removes a device and its tables. The error wraps ErrBusy when it is in use.
func (c *Control) Remove(name string, o RemoveOptions) error {
	r, err := onDevice("remove", cmdDevRemove, name)
	if err != nil {
		return err
	}
	if o.Deferred {
		r.flags = flagDeferredRemove
	}
	info, err := c.stateFor(r)
	if err != nil {
		return err
	}
	cookie := c.udev.begin()
	r.eventNr = cookie.eventNr()
	got, err := c.run(r)
	for end := time.Now().Add(o.Patience); errors.Is(err, ErrBusy) && time.Now().Before(end); {
		time.Sleep(removePause)
		got, err = c.run(r)
	}
	if err != nil {
		cookie.end()
		if errors.Is(err, ErrBusy) {
			return fmt.Errorf("%w%s", err, c.users(name))
		}
		return err
	}
	cookie.wait(got.Flags&flagUeventGenerated != 0)
	if got.Flags&flagDeferredRemove != 0 {
		return nil
	}
	if err := c.nodes.remove(info); err != nil {
		return fmt.Errorf("dm: remove %q: it is gone, but: %w", name, err)
	}
	return nil
}

// Rename gives a device another name. The error wraps ErrExists when it is taken.
func (c *Control) Rename(name, to string) error {
	r, err := onDevice("rename", cmdDevRename, name)
	if err != nil {
		return err
	}
	kernel, err := checkName(to)
	if err != nil {
		return fmt.Errorf("dm: rename %q to %q: %w", name, to, err)
	}
	old, err := c.stateFor(r)
	if err != nil {
		return err
	}
	cookie := c.udev.begin()
	r.data, r.eventNr = append([]byte(kernel), 0), cookie.eventNr()
	got, err := c.run(r)
	if err != nil {
		cookie.end()
		return fmt.Errorf("%w: new name %q", err, to)
	}
	cookie.wait(got.Flags&flagUeventGenerated != 0)
	if !old.ActiveTable {
		return nil
	}
	renamed := old
	renamed.Name = to
	if err := errors.Join(c.nodes.remove(old), c.nodes.make(renamed)); err != nil {
		return fmt.Errorf("dm: rename %q to %q: done, but: %w", name, to, err)
	}
	return nil
}

// exists reports whether there is something at path, without following links.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
