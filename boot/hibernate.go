package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tidemark/linux/sysfs"
)

// Where the kernel tells of hibernation. The second holds MAJOR:MINOR of the device that
// the kernel was told to resume from, by resume= or by the initramfs.
const (
	kernelCommand = "/proc/cmdline"
	resumeDevice  = "/sys/power/resume"
)

// swsuspMagic is HIBERNATE_SIG of kernel/power/swap.c, in the last ten bytes of the
// first page of a swap area.
const swsuspMagic = "S1SUSPEND"

// Hibernation fails with ErrHibernation when this boot would have resumed a hibernated
// system: the kernel was told a device to resume from, by resume= on its command line or
// by the initramfs, and noresume is not on the command line. Of a system that does not
// run nothing is known.
func (s *System) Hibernation() error {
	if !s.Running() {
		return nil
	}
	command, err := os.ReadFile(kernelCommand)
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	device, err := sysfs.Text(resumeDevice)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // the kernel does not hibernate
		return fmt.Errorf("boot: %w", err)
	}
	return resumes(strings.Fields(string(command)), device)
}

func resumes(command []string, device string) error {
	given := slices.ContainsFunc(command, func(word string) bool { return strings.HasPrefix(word, "resume=") })
	switch {
	case slices.Contains(command, "noresume"):
		return nil
	case given:
		return fmt.Errorf("boot: %w: the kernel's command line has resume=", ErrHibernation)
	case device != "" && device != "0:0":
		return fmt.Errorf("boot: %w: the initramfs resumes from device %s (%s)", ErrHibernation, device, resumeDevice)
	}
	return nil
}

// Hibernated fails with ErrHibernation when a hibernated system waits on a block device
// of this machine, a swap partition mostly, unless noresume is on the kernel's command
// line. A system that waits in a swap file is not seen. Call it in an initramfs: later no
// such system is resumed any more.
func Hibernated() error {
	command, err := os.ReadFile(kernelCommand)
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	if slices.Contains(strings.Fields(string(command)), "noresume") {
		return nil
	}
	disks, err := filepath.Glob("/sys/class/block/*")
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	for _, disk := range disks {
		path := filepath.Join("/dev", filepath.Base(disk))
		if isHibernated(path) {
			return fmt.Errorf("boot: %w: a hibernated system waits on %s; noresume on the kernel's command line gives it up", ErrHibernation, path)
		}
	}
	return nil
}

// isHibernated looks for the signature. A device that cannot be read has none.
func isHibernated(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	magic := make([]byte, len(swsuspMagic))
	_, err = f.ReadAt(magic, int64(os.Getpagesize()-10))
	return err == nil && string(magic) == swsuspMagic
}
