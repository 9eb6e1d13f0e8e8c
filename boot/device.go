package boot

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/linux/mounts"
)

// Folders of links that udev makes.
const (
	byPartUUID = "/dev/disk/by-partuuid"
	byID       = "/dev/disk/by-id"
	mapper     = "/dev/mapper"
)

const partUUID = "PARTUUID="

// DevicePath returns the path of the device with that stable name.
func DevicePath(name string) string {
	if id, ok := strings.CutPrefix(name, partUUID); ok {
		return filepath.Join(byPartUUID, strings.ToLower(id))
	}
	return name
}

// Resolve returns a name of a block device that is the same at every boot: its PARTUUID,
// else a link in /dev/disk/by-id, else its name in /dev/mapper. device is a path or
// PARTUUID=…. The error wraps ErrNoStableName when the device has no such name. With
// missing set, a device that does not exist here keeps its name when that has one of
// these forms: it belongs to the image of another machine.
func Resolve(device string, missing bool) (string, error) {
	if dir, base := filepath.Split(device); filepath.Clean(dir) == byPartUUID {
		device = partUUID + base
	}
	if id, ok := strings.CutPrefix(device, partUUID); ok {
		device = partUUID + strings.ToLower(id)
	}
	path := DevicePath(device)
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	switch {
	case err != nil && missing && devicePattern.MatchString(device):
		return device, nil
	case err != nil:
		return "", fmt.Errorf("boot: %s: %w", device, err)
	case st.Mode&unix.S_IFMT != unix.S_IFBLK:
		return "", fmt.Errorf("boot: %s: not a block device", device)
	}
	if id := linkTo(byPartUUID, st.Rdev); id != "" && !strings.HasPrefix(id, "00000000-0") {
		return partUUID + id, nil
	}
	for _, dir := range [...]string{byID, mapper} {
		if name := linkTo(dir, st.Rdev); name != "" {
			return filepath.Join(dir, name), nil
		}
	}
	return "", fmt.Errorf("boot: %s: %w", device, ErrNoStableName)
}

// linkTo returns the best name in dir of the block device with that number; "" when no
// name there is fit for the table.
func linkTo(dir string, rdev uint64) string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "" // no udev, or no such device: no names
	}
	var names []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if n, ok := number(path); ok && n == rdev && (dir == byPartUUID || devicePattern.MatchString(path)) {
			names = append(names, e.Name())
		}
	}
	if len(names) == 0 {
		return ""
	}
	return slices.MinFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(idRank(a), idRank(b)), cmp.Compare(a, b))
	})
}

// idRank puts identifiers before names made of a model and a serial number, which a
// change of driver can alter.
func idRank(name string) int {
	for rank, prefix := range [...]string{"dm-uuid-", "md-uuid-", "wwn-", "nvme-eui.", "nvme-uuid."} {
		if strings.HasPrefix(name, prefix) {
			return rank
		}
	}
	return 99
}

// StageOf returns when a device over the data device must be opened: in the initramfs when
// root or /usr is mounted from it now, else by systemd.
func StageOf(data string) (Stage, error) {
	table, err := mounts.Read()
	if err != nil {
		return "", fmt.Errorf("boot: %w", err)
	}
	use, err := table.UseOf(DevicePath(data))
	if err != nil {
		return "", fmt.Errorf("boot: %w", err)
	}
	for _, fs := range use.Filesystems {
		for _, m := range fs.Mounts {
			if m.PID == 0 && (m.Point == "/" || m.Point == "/usr") {
				return StageInitramfs, nil
			}
		}
	}
	return StageSystem, nil
}
