package bpf

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// DefaultFS is where systemd mounts bpffs.
const DefaultFS = "/sys/fs/bpf"

// MountFS makes sure that a bpffs is mounted at path, as systemd does at boot.
// An empty path is DefaultFS.
func MountFS(path string) error {
	mounted, err := IsFS(path)
	if err != nil || mounted {
		return err
	}
	path = orDefault(path)
	if err := unix.Mount("bpf", path, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME, "mode=700"); err != nil {
		if errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("bpf: mount bpffs at %s: %w: CONFIG_BPF_SYSCALL (Linux 4.4)", path, ErrNotSupported)
		}
		return fmt.Errorf("bpf: mount bpffs at %s: %w", path, err)
	}
	return nil
}

// IsFS reports whether path lies on a bpffs.
func IsFS(path string) (bool, error) {
	path = orDefault(path)
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	if errors.Is(err, unix.ENOENT) && path == DefaultFS { // sysfs makes it where the kernel has bpffs
		return false, fmt.Errorf("bpf: there is no %s: %w: CONFIG_BPF_SYSCALL (Linux 4.4), and sysfs mounted", path, ErrNotSupported)
	}
	if err != nil {
		return false, fmt.Errorf("bpf: %w", &os.PathError{Op: "statfs", Path: path, Err: err})
	}
	return uint32(st.Type) == unix.BPF_FS_MAGIC, nil
}

func orDefault(path string) string {
	if path == "" {
		return DefaultFS
	}
	return path
}
