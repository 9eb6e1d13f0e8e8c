package lvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockPause is how long to wait before the lock of a volume group is tried again.
const lockPause = 50 * time.Millisecond

// Hold keeps LVM from changing a volume group until release is called, or the process has died:
// commands that would change it wait. Those that only look go on, unless one that waits has come
// before (global/prioritise_write_locks). It waits for a command that
// is at it. The lock is that of lib/locking/file_locking.c of lvm2 2.03: flock(2) on a file of the
// folder global/locking_dir, which lvm2 removes and makes anew. The error wraps ErrRefused where
// lvm2 takes its locks from lvmlockd.
func Hold(ctx context.Context, vg string) (release func() error, err error) {
	config, err := lockConfig(ctx, "full")
	if said := (*Error)(nil); errors.As(err, &said) {
		config, err = lockConfig(ctx, "default") // what lvm2 goes by without a configuration file
	}
	if err != nil {
		return nil, err
	}
	dir := ""
	for line := range strings.Lines(string(config)) { // defaults are commented out
		key, value, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "# ")), "=")
		switch {
		case key == "locking_dir":
			dir = strings.Trim(value, "\"")
		case key == "use_lvmlockd" && value != "0":
			return nil, fmt.Errorf("lvm: %s: %w: its locks are lvmlockd's", vg, ErrRefused)
		}
	}
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("lvm: lvmconfig names no folder for locks: %q", config)
	}
	for {
		f, err := lock(filepath.Join(dir, "V_"+vg))
		if err != nil {
			return nil, err
		}
		if f != nil {
			return f.Close, nil
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// lockConfig asks lvm2 where its locks are, by its configuration of a type.
func lockConfig(ctx context.Context, kind string) ([]byte, error) {
	return run(ctx, "lvm", "lvmconfig", "--type", kind, "global/locking_dir", "global/use_lvmlockd")
}

// lock takes the lock of a file that may be replaced meanwhile; nil says that another has it.
func lock(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("lvm: lock: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lvm: lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, f.Close()
		}
		return nil, errors.Join(fmt.Errorf("lvm: lock %s: %w", path, err), f.Close())
	}
	held, err1 := f.Stat()
	there, err2 := os.Stat(path)
	if errors.Is(err2, fs.ErrNotExist) || err1 == nil && err2 == nil && !os.SameFile(held, there) {
		return nil, f.Close()
	}
	if err := errors.Join(err1, err2); err != nil {
		return nil, errors.Join(fmt.Errorf("lvm: lock: %w", err), f.Close())
	}
	return f, nil
}
