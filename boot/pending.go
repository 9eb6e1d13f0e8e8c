package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// pendingDir has a file for each era device that is in the table but not yet in use:
// until the next boot the udev rule leaves its data device alone, for that may be
// mounted by UUID now, and systemd unmounts what has lost its device.
const pendingDir = "/run/tidemark/boot-pending"

// Postpone leaves the names of an entry's data device as they are until the next boot
// of the running system. Call it before the entry's rule is written.
func Postpone(e Entry) error {
	if err := os.MkdirAll(pendingDir, 0o755); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	if err := os.WriteFile(filepath.Join(pendingDir, e.Name), nil, 0o644); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	return nil
}

// Unpostpone undoes Postpone, after the entry's rule was removed.
func Unpostpone(name string) error {
	err := os.Remove(filepath.Join(pendingDir, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("boot: %w", err)
	}
	return nil
}
