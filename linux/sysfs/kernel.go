package sysfs

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// KernelBefore reports whether the running kernel is older than a release, as its name has it.
func KernelBefore(major, minor int) (bool, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false, fmt.Errorf("uname: %w", err)
	}
	var has [2]int
	release := unix.ByteSliceToString(u.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &has[0], &has[1]); err != nil {
		return false, fmt.Errorf("kernel release %q: %w", release, err)
	}
	return has[0] < major || has[0] == major && has[1] < minor, nil
}
