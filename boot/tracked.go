package boot

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
)

const (
	// trackWord begins the line of a disk that is tracked over reboots.
	trackWord = "track"
	trackUnit = "tidemark-track@.service"
	// stateHome is where the tracking is saved, by the program, in a folder of its own.
	stateHome = "/var/lib"
)

// Tracked returns the disks that are tracked over clean reboots, by their stable names: paths.
func (t Tab) Tracked() []string {
	all := []string{}
	for _, l := range t.lines {
		if l.track != "" {
			all = append(all, l.track)
		}
	}
	return all
}

// acceptsTracked refuses a disk that is there already, and a name that is not stable.
func (t Tab) acceptsTracked(disk string) error {
	switch {
	case !devicePattern.MatchString(disk) || strings.HasPrefix(disk, partUUID):
		return fmt.Errorf("%w: the disk %q is not below /dev/disk/by-id or /dev/mapper", ErrTab, disk)
	case slices.Contains(t.Tracked(), disk):
		return fmt.Errorf("%w: %s is tracked twice", ErrTab, disk)
	}
	return nil
}

// WithTracked returns the table with a disk, named as Disk does, that is tracked over reboots.
// One that is there already changes nothing. The error wraps ErrTab.
func (t Tab) WithTracked(disk string) (Tab, error) {
	if slices.Contains(t.Tracked(), disk) {
		return t, nil
	}
	if err := t.acceptsTracked(disk); err != nil {
		return Tab{}, fmt.Errorf("boot: %w", err)
	}
	changed := Tab{lines: slices.Clone(t.lines)}
	changed.begin()
	changed.lines = append(changed.lines, tabLine{text: trackWord + "\t" + disk, track: disk})
	return changed, nil
}

// WithoutTracked returns the table without a disk that is tracked. The error wraps ErrNoEntry.
func (t Tab) WithoutTracked(disk string) (Tab, error) {
	at := slices.IndexFunc(t.lines, func(l tabLine) bool { return disk != "" && l.track == disk })
	if at < 0 {
		return Tab{}, fmt.Errorf("boot: %s: %w", disk, ErrNoEntry)
	}
	return Tab{lines: slices.Delete(slices.Clone(t.lines), at, at+1)}, nil
}

// Disk returns the stable name of the whole disk that a device is, or is a part of: what is
// tracked is the disk. A device of device-mapper has its name in /dev/mapper, by which the units that
// open and close it are ordered. With missing set, a name below /dev/disk/by-id or /dev/mapper of a device that
// does not exist here is kept. The error wraps ErrNoStableName.
func Disk(device string, missing bool) (string, error) {
	id, err := block.Identify(device)
	if err != nil {
		if name, err := Resolve(device, missing); err == nil {
			return name, nil
		}
		return "", fmt.Errorf("boot: %w", err)
	}
	if sysfs.IsMapped(id.Disk) {
		if name := linkTo(mapper, unix.Mkdev(id.DiskMajor, id.DiskMinor)); name != "" {
			return filepath.Join(mapper, name), nil
		}
	}
	return Resolve(sysfs.DevPath(id.Disk), missing)
}

// CheckTracked fails when the tracking of a disk cannot be saved on the running system: root is on
// it, whose filesystem is never unmounted, or what is saved; or /var/lib is not on root, and so
// not there before the disk is used; or the disk is a volume of LUKS or LVM, of which it is not shown
// yet that systemd opens and closes it in the right order. The error wraps ErrUnsuitable.
func CheckTracked(disk string) error {
	id, err := block.Identify(disk)
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	uuid, err := sysfs.Text(filepath.Join(sysfs.DiskDir(id.Disk), "dm/uuid"))
	if err == nil && (strings.HasPrefix(uuid, "CRYPT-") || strings.HasPrefix(uuid, "LVM-")) {
		return fmt.Errorf("boot: %s: %w: the tracking of a volume of LUKS or LVM cannot be saved yet; a dm-era device (--era) keeps its marks over reboots and power cuts", disk, ErrUnsuitable)
	}
	table, err := mounts.Read()
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	root, err := table.Of("/")
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	state, err := table.Of(stateHome)
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	if state.Dev != root.Dev {
		return fmt.Errorf("boot: %w: %s is a filesystem of its own, so that what is saved in it is not there before disks are mounted; a dm-era device (--era) keeps its marks over reboots", ErrUnsuitable, stateHome)
	}
	use, err := table.UseOf(disk)
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	for _, fs := range use.Filesystems {
		if fs.Dev == root.Dev {
			return fmt.Errorf("boot: %s: %w: the root filesystem is on it, and its tracking cannot be saved yet, because it is never unmounted; a dm-era device (--era) keeps its marks over reboots and power cuts", disk, ErrUnsuitable)
		}
	}
	return nil
}

// TrackInstance returns the name, for systemd and for files, of a disk that is tracked.
func TrackInstance(disk string) string { return escape(disk) }

// TrackUnit returns the unit that tracks a disk over reboots.
func TrackUnit(disk string) string { return strings.Replace(trackUnit, "@", "@"+escape(disk), 1) }

// trackUnits are the files for the disks that are tracked.
func trackUnits(t Tab, program string) []File {
	if len(t.Tracked()) == 0 {
		return nil
	}
	files := []File{{Path: filepath.Join(systemdDir, trackUnit), Mode: 0o644, Data: fill("systemd/"+trackUnit, "@PROGRAM@", program)}}
	for _, disk := range t.Tracked() {
		files = append(files, File{Path: filepath.Join(systemdDir, "local-fs.target.wants", TrackUnit(disk)), Link: "../" + trackUnit})
	}
	return files
}
