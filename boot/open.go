package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/dm"
	"tidemark/linux/dmera"
)

// poll is how often a device is looked for that is not there yet.
const poll = 100 * time.Millisecond

// Opener opens the devices of a table.
type Opener struct {
	Options dmera.Options
	Wait    time.Duration              // for devices that are not there yet, all together
	Log     func(e Entry, done string) // gets what was done; may be nil
}

// Open opens each entry that is not open yet, also when others fail, and returns what
// went wrong, each error a *Failure. On an era device that is open it switches discards off.
func (o Opener) Open(ctx context.Context, entries []Entry) error {
	deadline := time.Now().Add(o.Wait)
	var failed error
	for _, e := range entries {
		if err := o.open(ctx, e, deadline); err != nil {
			failed = errors.Join(failed, &Failure{Entry: e, Err: err})
		}
	}
	return failed
}

// Failure says why a device is not open.
type Failure struct {
	Entry Entry
	Err   error
}

// Error implements error.
func (f *Failure) Error() string {
	return fmt.Sprintf("boot: %s device %s: %v", f.Entry.Kind(), f.Entry.Name, f.Err)
}

// Unwrap makes a Failure wrap ErrNotOpen and its cause.
func (f *Failure) Unwrap() []error { return []error{ErrNotOpen, f.Err} }

func (o Opener) open(ctx context.Context, e Entry, deadline time.Time) error {
	if err := Await(ctx, DevicePath(e.Data), deadline); err != nil {
		return err
	}
	if e.Linear() {
		return withMapper(func(ctl *dm.Control) error { return o.openLinear(ctl, e) })
	}
	meta := DevicePath(e.Meta)
	if err := Await(ctx, meta, deadline); err != nil {
		return err
	}
	return withMapper(func(ctl *dm.Control) error {
		d, err := o.active(ctl, e)
		if err == nil { // once more, for discards to be off
			return errors.Join(d.Close(), o.activate(ctx, ctl, e, ""))
		}
		if !errors.Is(err, ErrNotOpen) {
			return err
		}
		fresh := false
		if e.Create > 0 {
			if fresh, err = zeroed(meta); err != nil {
				return err
			}
		}
		if fresh {
			return o.create(ctx, ctl, e)
		}
		return o.activate(ctx, ctl, e, "opened")
	})
}

// activate opens a device, or refuses when its name belongs to a device over others.
func (o Opener) activate(ctx context.Context, ctl *dm.Control, e Entry, done string) error {
	d, err := dmera.Activate(ctl, dmera.ActivateOptions{Options: o.Options, Name: e.Name, Data: DevicePath(e.Data), Meta: DevicePath(e.Meta)})
	if err != nil {
		return err
	}
	o.log(e, done)
	st, err := d.Status(ctx)
	if err == nil && st.Discards > 0 {
		o.log(e, fmt.Sprintf("took %d discards, of which dm-era remembers only the first block: marks and eras from before count no more", st.Discards))
	}
	return errors.Join(err, d.Close())
}

func (o Opener) create(ctx context.Context, ctl *dm.Control, e Entry) error {
	d, err := dmera.Create(ctx, ctl, dmera.CreateOptions{
		Options: o.Options, Name: e.Name, Data: DevicePath(e.Data), Meta: DevicePath(e.Meta), BlockSize: e.Create,
	})
	if err != nil {
		return err
	}
	o.log(e, "opened with new metadata")
	return d.Close()
}

func (o Opener) log(e Entry, done string) {
	if o.Log != nil && done != "" {
		o.Log(e, done)
	}
}

// active returns the open era device of an entry. The error wraps ErrNotOpen when there
// is none of that name over the entry's devices.
func (o Opener) active(ctl *dm.Control, e Entry) (*dmera.Device, error) {
	if _, err := ctl.Info(e.Name); errors.Is(err, dm.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", ErrNotOpen, err)
	}
	d, err := dmera.Open(ctl, e.Name, o.Options)
	if err != nil {
		return nil, err
	}
	if !same(DevicePath(e.Data), d.DataPath()) || !same(DevicePath(e.Meta), d.MetaPath()) {
		err := fmt.Errorf("%w: %s is over %s and %s, not over %s and %s", ErrNotOpen, e.Path(), d.DataPath(), d.MetaPath(), e.Data, e.Meta)
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Note writes down which of the era devices are not open: their data changes now, and no
// era tells of it. Of those that are open it writes down the discards that they took. It
// returns what went wrong, each error a *Failure.
func (o Opener) Note(ctx context.Context, entries []Entry) error {
	var failed error
	for _, e := range entries {
		if e.Linear() {
			continue
		}
		if err := o.note(ctx, e); err != nil {
			failed = errors.Join(failed, &Failure{Entry: e, Err: err})
		}
	}
	return failed
}

func (o Opener) note(ctx context.Context, e Entry) error {
	open := false
	err := withMapper(func(ctl *dm.Control) error {
		d, err := o.active(ctl, e)
		if err != nil {
			return err
		}
		open = true
		_, err = d.NoteGaps(ctx)
		return errors.Join(err, d.Close())
	})
	if open {
		return err
	}
	// A device of which the kernel cannot tell counts as not open.
	if errors.Is(err, ErrNotOpen) {
		err = nil
	}
	past := dmera.NotePast(e.Name, DevicePath(e.Meta), o.Options)
	if past == nil {
		o.log(e, "is not open: marks from before this boot count no more")
	}
	return errors.Join(err, past)
}

// withMapper calls do with a connection to device-mapper.
func withMapper(do func(*dm.Control) error) error {
	ctl, err := dm.Open()
	if err != nil {
		return err
	}
	return errors.Join(do(ctl), ctl.Close())
}

// Await waits until the deadline for a block device at path, and fails when there is none.
func Await(ctx context.Context, path string, deadline time.Time) error {
	for {
		var st unix.Stat_t
		err := unix.Stat(path, &st)
		switch {
		case err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK:
			return nil
		case err == nil:
			return fmt.Errorf("%s is not a block device", path)
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%s: %w", path, err)
		case !time.Now().Before(deadline):
			return fmt.Errorf("there is no device %s", path)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(poll):
		}
	}
}

// same reports whether two paths lead to one block device.
func same(a, b string) bool {
	numberA, okA := number(a)
	numberB, okB := number(b)
	return okA && okB && numberA == numberB
}

// number returns the number of the block device at path.
func number(path string) (uint64, bool) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return st.Rdev, err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK
}

// Instead returns the entry whose data device is at path, under any of its names, or which
// has taken that name: mount the entry's device instead. path may be PARTUUID=….
func (t Tab) Instead(path string) (Entry, bool) {
	n, ok := number(DevicePath(path))
	for _, e := range t.Entries() {
		data, found := e.data()
		own, open := number(e.Path())
		if ok && (found && data == n || open && own == n) {
			return e, true
		}
	}
	return Entry{}, false
}

// Remedy tells a user what to do, in the shell of an initramfs or elsewhere, when the
// device cannot be opened.
func (e Entry) Remedy() string {
	if e.Linear() {
		return fmt.Sprintf(`what to do about %[1]s:
  ls -l %[2]s
      the device must be there; another one is named in %[3]s
  tidemark boot open %[1]s
      tries again
  sed -i "/^%[1]s[[:space:]]/d" %[3]s
      goes on without it, in an initramfs for this boot only: %[2]s is then
      mounted itself, where it is not named by %[4]s
Leave the shell with "exit" to go on.`, e.Name, DevicePath(e.Data), TabPath, e.Path())
	}
	data, meta := DevicePath(e.Data), DevicePath(e.Meta)
	return fmt.Sprintf(`what to do about %[1]s:
  ls -l %[2]s %[3]s
      both devices must be there; another one is named in %[4]s
  tidemark boot open %[1]s
      tries again
  tidemark era check %[3]s
      lists what is wrong with the metadata
  dd if=/dev/zero of=%[3]s bs=4096 count=1
  tidemark era create %[1]s --data %[2]s --meta %[3]s
      makes the metadata anew, here or on another empty device: the marks of all
      copies are lost, the next copies compare everything
Never mount %[2]s itself: what is written to it past the era device is missing
in the next copies. Leave the shell with "exit" to go on.`, e.Name, data, meta, TabPath)
}
