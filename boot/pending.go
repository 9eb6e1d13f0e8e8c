package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"tidemark/linux/dm"
	"tidemark/linux/dmera"
)

// pendingDir has a file for each device that is in the table but not yet in use.
// Until the next boot the udev rule leaves its data device alone: it may be mounted by
// UUID now, and systemd unmounts a filesystem whose device has lost its name.
const pendingDir = "/run/tidemark/boot-pending"

// Postpone leaves the names of an entry's data device as they are until the next boot of
// the running system, unless the era device is open already. Until then the system writes
// past the era device: for an entry of the initramfs that is written down as Note does.
// Call it before the entry's rule is written.
func (o Opener) Postpone(e Entry) error {
	if e.Linear() {
		return postpone(e)
	}
	open := withMapper(func(ctl *dm.Control) error {
		d, err := o.active(ctl, e)
		if err != nil {
			return err
		}
		return d.Close()
	})
	if open == nil {
		return nil
	}
	if e.Stage == StageInitramfs {
		if err := dmera.NotePast(e.Name, DevicePath(e.Meta), o.Options); err != nil {
			return err
		}
	}
	return postpone(e)
}

func postpone(e Entry) error {
	if err := os.MkdirAll(pendingDir, 0o755); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	if err := os.WriteFile(filepath.Join(pendingDir, e.Name), nil, 0o644); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	return nil
}

// Unpostpone undoes Postpone, after the entry's rule was removed or the device opened.
func Unpostpone(name string) error {
	err := os.Remove(filepath.Join(pendingDir, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("boot: %w", err)
	}
	return nil
}

// runRules is where the rule of a device stays that left the table while it was open.
func runRules(name string) string { return "/run/udev/rules.d/61-tidemark-" + name + ".rules" }

// KeepNames keeps the names of a linear device, which is open and not in the table any
// more, as they are until the next boot: what is mounted from it must not lose them.
func KeepNames(e Entry) error {
	path := runRules(e.Name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, rules([]Entry{e}), 0o644)
	}
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	return nil
}

// LoseNames undoes KeepNames.
func LoseNames(name string) error {
	err := os.Remove(runRules(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("boot: %w", err)
	}
	return nil
}
