package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

// Kernel opens era devices.
type Kernel interface {
	// Active tells the paths of the data and the metadata device of an open era
	// device. The error wraps ErrNotOpen when there is none of that name.
	Active(name string) (data, meta string, err error)
	// Open opens an era device whose metadata has been used before. For one that is
	// open it sees to it that discards are off.
	Open(ctx context.Context, name, data, meta string) error
	// Create opens an era device with new metadata in place of zeros.
	Create(ctx context.Context, name, data, meta string, blockSize int64) error
	// Note writes down what an open era device's metadata does not tell, NotePast that
	// the data of one is used while it is not open, also when meta cannot be read.
	Note(ctx context.Context, name string) error
	NotePast(name, meta string) error
	// Blank reports whether metadata is all zero where it would begin.
	Blank(meta string) (bool, error)
}

// poll is how often a device is looked for that is not there yet.
const poll = 100 * time.Millisecond

// Opener opens the era devices of a table.
type Opener struct {
	Kernel Kernel
	Wait   time.Duration              // for devices that are not there yet, all together
	Log    func(e Entry, done string) // is told what was done; nil: nobody is
}

// Open opens each entry that is not open yet, also when others fail, and returns what
// went wrong, each error a *Failure.
func (o Opener) Open(ctx context.Context, entries []Entry) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	deadline := time.Now().Add(o.Wait)
	var failed error
	for _, e := range entries {
		done, err := o.open(ctx, e, deadline)
		switch {
		case err != nil:
			failed = errors.Join(failed, &Failure{Entry: e, Err: err})
		case done != "" && o.Log != nil:
			o.Log(e, done)
		}
	}
	return failed
}

// Failure is an era device that is not open, and why.
type Failure struct {
	Entry Entry
	Err   error
}

// Error implements error.
func (f *Failure) Error() string {
	return fmt.Sprintf("boot: era device %s: %v", f.Entry.Name, f.Err)
}

// Unwrap makes a Failure wrap ErrNotOpen and its cause.
func (f *Failure) Unwrap() []error { return []error{ErrNotOpen, f.Err} }

func (o Opener) open(ctx context.Context, e Entry, deadline time.Time) (string, error) {
	data, meta := DevicePath(e.Data), DevicePath(e.Meta)
	for _, path := range [...]string{data, meta} {
		if err := await(ctx, path, deadline); err != nil {
			return "", err
		}
	}
	haveData, haveMeta, err := o.Kernel.Active(e.Name)
	switch {
	case err == nil && same(data, haveData) && same(meta, haveMeta):
		return "", o.Kernel.Open(ctx, e.Name, data, meta) // for discards to be off
	case err == nil:
		return "", fmt.Errorf("it is open over %s and %s, not over %s and %s", haveData, haveMeta, e.Data, e.Meta)
	case !errors.Is(err, ErrNotOpen):
		return "", err
	}
	if e.Create > 0 {
		blank, err := o.Kernel.Blank(meta)
		if err != nil {
			return "", err
		}
		if blank {
			return "opened with new metadata", o.Kernel.Create(ctx, e.Name, data, meta, e.Create)
		}
	}
	return "opened", o.Kernel.Open(ctx, e.Name, data, meta)
}

// Note looks which entries are open, and writes down for the others that what changes
// now is in no era. It returns what went wrong, each error a *Failure.
func (o Opener) Note(ctx context.Context, entries []Entry) error {
	var failed error
	for _, e := range entries {
		past, err := o.note(ctx, e)
		switch {
		case err != nil:
			failed = errors.Join(failed, &Failure{Entry: e, Err: err})
		case past && o.Log != nil:
			o.Log(e, "is not open: marks from before this boot count no more")
		}
	}
	return failed
}

func (o Opener) note(ctx context.Context, e Entry) (past bool, err error) {
	data, meta := DevicePath(e.Data), DevicePath(e.Meta)
	haveData, haveMeta, err := o.Kernel.Active(e.Name)
	switch {
	case err == nil && same(data, haveData) && same(meta, haveMeta):
		return false, o.Kernel.Note(ctx, e.Name)
	case errors.Is(err, ErrNotOpen):
		err = nil
	}
	// Where the kernel cannot tell, as one without device-mapper, it is not known to be open.
	return true, errors.Join(err, o.Kernel.NotePast(e.Name, meta))
}

// await waits until there is a block device at path.
func await(ctx context.Context, path string, deadline time.Time) error {
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

// Instead returns the entry whose data device is at path, whatever name that is: the
// era device is to be mounted instead.
func (t Tab) Instead(path string) (Entry, bool) {
	for _, e := range t.Entries() {
		if same(path, DevicePath(e.Data)) {
			return e, true
		}
	}
	return Entry{}, false
}

// Remedy is what to do in the shell of an initramfs, or in any other, when an era
// device cannot be opened.
func (e Entry) Remedy() string {
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
