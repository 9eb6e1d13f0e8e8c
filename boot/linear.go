package boot

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/dm"
	"tidemark/linux/sysfs"
)

// LinearPrefix begins the device-mapper UUID of each linear device. What follows tells its
// data device from all others, on other machines too: by the UUID a mirror knows its source.
const LinearPrefix = "TIDEMARK-LINEAR-"

// linearUUID returns the device-mapper UUID of a linear device.
func (e Entry) linearUUID() string {
	if id, ok := strings.CutPrefix(e.Data, partUUID); ok {
		return LinearPrefix + id
	}
	sum := sha256.Sum256([]byte(e.Data)) // a name may be longer than a UUID (DM_UUID_LEN)
	return LinearPrefix + hex.EncodeToString(sum[:16])
}

// Programs such as udev open a device for a moment. Removing one that was just made waits
// for patience; removing one that users may have in use, for closePatience.
const (
	patience      = 10 * time.Second
	closePatience = 2 * time.Second
)

// openLinear opens a linear device over all of its data device. One that is open over it
// already, whatever was put between for a snapshot, is left alone.
func (o Opener) openLinear(ctl *dm.Control, e Entry) error {
	data, ok := e.data()
	if !ok {
		return fmt.Errorf("there is no device %s", DevicePath(e.Data))
	}
	info, err := ctl.Info(e.Name)
	switch {
	case err == nil && strings.HasPrefix(info.UUID, LinearPrefix) && bottom(info.Dev()) == sysfs.DevOf(data):
		return nil
	case err == nil:
		return fmt.Errorf("%w: %s is another device, not over %s", dm.ErrExists, e.Path(), e.Data)
	case !errors.Is(err, dm.ErrNotFound):
		return err
	}
	if err := createLinear(ctl, e, sysfs.DevOf(data)); err != nil {
		return err
	}
	o.log(e, "opened")
	announce(data)
	return nil
}

func createLinear(ctl *dm.Control, e Entry, data sysfs.Dev) (err error) {
	name := e.Name
	sectors, err := sysfs.Uint(filepath.Join(data.Dir(), "size"))
	if err != nil {
		return err
	}
	if _, err := ctl.Create(name, e.linearUUID()); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ctl.Remove(name, dm.RemoveOptions{Patience: patience}))
		}
	}()
	table := []dm.Target{{Len: sectors, Type: "linear", Params: data.String() + " 0"}}
	if _, err := ctl.Load(name, table, dm.LoadOptions{}); err != nil {
		return err
	}
	_, err = ctl.Resume(name)
	return err
}

// CloseLinear takes the device of a linear entry down, where it is open, so that its data
// device can be used itself. The error wraps dm.ErrBusy when it is in use, as by a snapshot
// of it.
func CloseLinear(e Entry) error {
	data, _ := e.data()
	err := withMapper(func(ctl *dm.Control) error {
		table, info, err := ctl.Table(e.Name)
		switch {
		case errors.Is(err, dm.ErrNotFound):
			return nil
		case err != nil:
			return err
		case !strings.HasPrefix(info.UUID, LinearPrefix):
			return nil // of somebody else
		case len(table) != 1 || table[0].Type != "linear":
			return fmt.Errorf("%s: %w: there is a snapshot of it", e.Path(), dm.ErrBusy)
		}
		return ctl.Remove(e.Name, dm.RemoveOptions{Patience: closePatience})
	})
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	announce(data)
	return nil
}

// announce lets udev look at a data device anew: its names depend on whether a device is
// open over it. Without udev there is nothing to be told.
func announce(data uint64) {
	_ = os.WriteFile(filepath.Join(sysfs.DevOf(data).Dir(), "uevent"), []byte("change"), 0)
}

// LinearOver returns the linear entry whose data device, or whose own device, is at path.
func (t Tab) LinearOver(path string) (Entry, bool) {
	for _, e := range t.Entries() {
		if e.Linear() && filepath.Clean(path) == e.Path() {
			return e, true // open or not
		}
	}
	e, ok := t.Instead(path)
	return e, ok && e.Linear()
}

// Open reports whether the device of a linear entry is open.
func (e Entry) Open() bool {
	data, ok := e.data()
	n, there := number(e.Path())
	return ok && there && n != data && bottom(sysfs.DevOf(n)) == sysfs.DevOf(data)
}

// data returns the number of the data device. An open linear device has taken its name by
// PARTUUID.
func (e Entry) data() (uint64, bool) {
	n, ok := number(DevicePath(e.Data))
	if own, open := number(e.Path()); e.Linear() && ok && open && n == own {
		d := bottom(sysfs.DevOf(n))
		return unix.Mkdev(d.Major, d.Minor), true
	}
	return n, ok
}

// bottom follows a device down to what it lies on, as long as it is one of device-mapper's
// over one other.
func bottom(d sysfs.Dev) sysfs.Dev {
	for {
		if _, err := sysfs.Text(filepath.Join(d.Dir(), "dm/uuid")); err != nil {
			return d
		}
		below, err := filepath.Glob(filepath.Join(d.Dir(), "slaves/*/dev"))
		if err != nil || len(below) != 1 {
			return d
		}
		text, err := sysfs.Text(below[0])
		if err != nil {
			return d
		}
		if d, err = sysfs.ParseDev(text); err != nil {
			return d
		}
	}
}

// LinearLeft returns the linear device that is open over the data device at path, or at
// path itself, whether or not it is in the table still.
func LinearLeft(path string) (Entry, bool) {
	n, ok := number(path)
	if !ok {
		return Entry{}, false
	}
	d := sysfs.DevOf(n)
	above, err := filepath.Glob(filepath.Join(d.Dir(), "holders/*/dm"))
	if err != nil {
		return Entry{}, false
	}
	for _, dir := range append(above, filepath.Join(d.Dir(), "dm")) {
		uuid, err1 := sysfs.Text(filepath.Join(dir, "uuid"))
		name, err2 := sysfs.Text(filepath.Join(dir, "name"))
		if errors.Join(err1, err2) != nil || !strings.HasPrefix(uuid, LinearPrefix) {
			continue
		}
		own, there := number(filepath.Join(mapper, name))
		node, err := sysfs.Node(bottom(sysfs.DevOf(own)))
		if there && err == nil {
			return Entry{Name: name, Data: node, Stage: StageSystem}, true
		}
	}
	return Entry{}, false
}
