package vm

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxGuests is how many guests run at a time on one machine.
const maxGuests = 2

// cache is the folder that scripts/vm-setup fills.
type cache struct {
	dir   string
	ready []byte // the list of what is installed
}

// openCache returns the cache if it is complete.
func openCache() (cache, error) {
	user, err := os.UserCacheDir()
	if err != nil {
		return cache{}, err
	}
	c := cache{dir: filepath.Join(user, "tidemark", "vm")}
	c.ready, err = os.ReadFile(filepath.Join(c.dir, "ready"))
	if err != nil {
		return cache{}, fmt.Errorf("the VM rig is not set up (run scripts/vm-setup): %w", err)
	}
	return c, nil
}

// emulator is the folder with QEMU and its libraries.
func (c cache) emulator() string {
	return filepath.Join(c.dir, "qemu")
}

// tree is the folder with the unpacked packages for guests.
func (c cache) tree() string {
	return filepath.Join(c.dir, "tree")
}

// kernel is the folder of a kernel.
func (c cache) kernel(k Kernel) string {
	return filepath.Join(c.dir, "kernel-"+string(k))
}

// release is the full release of a kernel, as uname -r.
func (c cache) release(k Kernel) (string, error) {
	data, err := os.ReadFile(filepath.Join(c.kernel(k), "release"))
	if err != nil {
		return "", fmt.Errorf("kernel %s is not in the rig (run scripts/vm-setup): %w", k, err)
	}
	return strings.TrimSpace(string(data)), nil
}

// made returns the cached file of this name, made by fill when it is not there yet.
// Whatever its content depends on must be in key.
func (c cache) made(name, key string, fill func(*os.File) error) (string, error) {
	sum := sha256.Sum256(append([]byte(key+"\x00"), c.ready...))
	path := filepath.Join(c.dir, fmt.Sprintf("made-%s-%x", name, sum[:8]))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	file, err := os.CreateTemp(c.dir, "new-")
	if err != nil {
		return "", err
	}
	if err := errors.Join(fill(file), file.Close()); err != nil {
		return "", errors.Join(err, os.Remove(file.Name()))
	}
	return path, os.Rename(file.Name(), path)
}

// slot waits until fewer than maxGuests guests run, and holds a place until the
// returned file is closed.
func (c cache) slot() (*os.File, error) {
	for {
		for i := range maxGuests {
			file, err := os.OpenFile(filepath.Join(c.dir, fmt.Sprintf("slot-%d", i)), os.O_CREATE|os.O_RDWR, 0o600)
			if err != nil {
				return nil, err
			}
			if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
				return file, nil
			}
			file.Close()
		}
		time.Sleep(100 * time.Millisecond)
	}
}
