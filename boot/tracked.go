package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
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
	// rootUnit is that of the disk of the root filesystem, and shutdownHook saves it: systemd calls it
	// when all is unmounted or read-only (systemd-shutdown(8)).
	rootUnit     = "tidemark-track-root@.service"
	shutdownHook = "/usr/lib/systemd/system-shutdown/tidemark-track"
	// stateHome is where the tracking is saved, by the program, in a folder of its own. Where that is not on
	// root's filesystem, and so not there before disks are mounted, it is saved to onRoot: as soon as
	// that folder is there.
	stateHome = "/var/lib"
	onRoot    = "/etc/tidemark/tracking"
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

// TrackedRoot returns the disk of the root filesystem, if that is tracked over clean reboots; else "".
func (t Tab) TrackedRoot() string {
	for _, l := range t.lines {
		if l.root {
			return l.track
		}
	}
	return ""
}

// acceptsRoot refuses a second disk with the root filesystem.
func (t Tab) acceptsRoot(disk string) error {
	if other := t.TrackedRoot(); other != "" {
		return fmt.Errorf("%w: root is on %s and on %s", ErrTab, other, disk)
	}
	return t.acceptsTracked(disk)
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

// WithTracked returns the table with a disk, named as Disk does, that is tracked over reboots:
// from the initramfs on if the root filesystem is on it, else by systemd. One that is there already
// changes nothing. The error wraps ErrTab.
func (t Tab) WithTracked(disk string, stage Stage) (Tab, error) {
	if slices.Contains(t.Tracked(), disk) {
		return t, nil
	}
	line := tabLine{text: trackWord + "\t" + disk, track: disk, root: stage == StageInitramfs}
	accepts := t.acceptsTracked
	if line.root {
		line.text += "\t" + string(StageInitramfs)
		accepts = t.acceptsRoot
	}
	if err := accepts(disk); err != nil {
		return Tab{}, fmt.Errorf("boot: %w", err)
	}
	changed := Tab{lines: slices.Clone(t.lines)}
	changed.begin()
	changed.lines = append(changed.lines, line)
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

// CheckTracked returns when the tracking of a disk of the running system has to begin, or fails when
// it cannot be saved: root on something else than ext4 or XFS on a plain disk; neither /var/lib nor /etc on
// root, and so there before disks are used; a key file that is not, which systemd would wait for in a
// circle. The error wraps ErrUnsuitable.
func CheckTracked(disk string) (Stage, error) {
	id, err := block.Identify(disk)
	if err != nil {
		return "", fmt.Errorf("boot: %w", err)
	}
	table, root, apart, err := layout()
	if err != nil {
		return "", err
	}
	if etc, err := table.Of(filepath.Dir(TabPath)); apart && (err != nil || etc.Dev != root.Dev) {
		return "", fmt.Errorf("boot: %w: neither %s nor %s is on root's filesystem, so that what is saved is not there before disks are mounted; a dm-era device (--era) keeps its marks over reboots", ErrUnsuitable, stateHome, filepath.Dir(TabPath))
	}
	if sysfs.IsMapped(id.Disk) {
		if err := keysOnRoot(table, root); err != nil {
			return "", err
		}
	}
	use, err := table.UseOf(disk)
	if err != nil {
		return "", fmt.Errorf("boot: %w", err)
	}
	for _, mounted := range use.Filesystems {
		if mounted.Dev == root.Dev {
			return StageInitramfs, checkRoot(id, root)
		}
	}
	return StageSystem, nil
}

// layout returns what is mounted, what of it is root, and whether the state folder is not on that.
func layout() (table *mounts.Table, root mounts.Filesystem, apart bool, err error) {
	var state mounts.Filesystem
	if table, err = mounts.Read(); err == nil {
		root, err = table.Of("/")
	}
	if err == nil {
		state, err = table.Of(stateHome)
	}
	if err != nil {
		err = fmt.Errorf("boot: %w", err)
	}
	return table, root, state.Dev != root.Dev, err
}

// lacksPlace reports whether what is tracked on the running system is saved where it is not there before
// disks are mounted.
func lacksPlace() (bool, error) {
	if _, err := os.Stat(onRoot); err == nil {
		return false, nil
	}
	_, _, apart, err := layout()
	return apart, err
}

// MakePlace makes the folder that what is tracked on the running system is saved to, where the state
// folder is not on root's filesystem.
func MakePlace() error {
	lacks, err := lacksPlace()
	if err == nil && lacks {
		err = os.MkdirAll(onRoot, 0o700)
	}
	return err
}

// crypttab lists what systemd decrypts at boot.
const crypttab = "/etc/crypttab"

// keysOnRoot refuses a system with a key file, or a header, on another filesystem than root. Tracking
// begins before any of them is mounted, and after what is tracked was decrypted.
func keysOnRoot(table *mounts.Table, root mounts.Filesystem) error {
	text, err := os.ReadFile(crypttab)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	for _, key := range keyFiles(string(text)) {
		if at, err := table.Of(key); err == nil && at.Dev != root.Dev {
			return fmt.Errorf("boot: %w: the file %s that %s names is on a filesystem that is mounted after tracking must have begun; move it to root's", ErrUnsuitable, key, crypttab)
		}
	}
	return nil
}

// keyFiles returns the files that a crypttab names (crypttab(5)), with keys or headers: no devices, and
// none on a device that is mounted for that.
func keyFiles(text string) (files []string) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 3 || strings.HasPrefix(f[0], "#") {
			continue
		}
		named := []string{f[2]}
		if _, header, ok := strings.Cut(strings.Join(f[3:], ""), "header="); ok {
			header, _, _ = strings.Cut(header, ",")
			named = append(named, header)
		}
		for _, name := range named {
			if strings.HasPrefix(name, "/") && !strings.HasPrefix(name, "/dev/") && !strings.Contains(name, ":") {
				files = append(files, name)
			}
		}
	}
	return files
}

// checkRoot refuses a disk of the root filesystem that cannot be saved when that is read-only.
func checkRoot(id block.Identity, root mounts.Filesystem) error {
	at, err := block.IdentifyDev(root.Dev)
	switch {
	case root.Type != "ext4" && root.Type != "xfs":
		return fmt.Errorf("boot: %s: %w: the root filesystem is on it, and is %s: the tracking of the disk can be saved only where that is ext4 or XFS; a dm-era device (--era) keeps its marks over reboots and power cuts", id.Path, ErrUnsuitable, root.Type)
	case err != nil:
		return fmt.Errorf("boot: %w", err)
	case at.Disk != id.Disk || id.BioBased:
		return fmt.Errorf("boot: %s: %w: the root filesystem is not on a partition of it itself, but on %s: its tracking cannot be saved; a dm-era device (--era) keeps its marks over reboots and power cuts", id.Path, ErrUnsuitable, at.Disk)
	}
	return nil
}

// TrackUnit returns the unit that tracks a disk of the table over reboots.
func (t Tab) TrackUnit(disk string) string {
	unit := trackUnit
	if disk == t.TrackedRoot() {
		unit = rootUnit
	}
	return strings.Replace(unit, "@", "@"+escape(disk), 1)
}

// trackUnits are the files for the disks that are tracked.
func trackUnits(t Tab, program string) []File {
	var files []File
	root := t.TrackedRoot()
	if root != "" {
		files = append(files,
			File{Path: filepath.Join(systemdDir, rootUnit), Mode: 0o644, Data: fill("systemd/"+rootUnit, "@PROGRAM@", program)},
			File{Path: shutdownHook, Mode: 0o755, Data: fill("systemd/shutdown", "@PROGRAM@", program, "@DISK@", root)})
	}
	if others := len(t.Tracked()); others > 1 || others == 1 && root == "" {
		files = append(files, File{Path: filepath.Join(systemdDir, trackUnit), Mode: 0o644, Data: fill("systemd/"+trackUnit, "@PROGRAM@", program)})
	}
	for _, disk := range t.Tracked() {
		template := trackUnit
		if disk == root {
			template = rootUnit
		}
		files = append(files, File{Path: filepath.Join(systemdDir, "local-fs.target.wants", t.TrackUnit(disk)), Link: "../" + template})
	}
	return files
}
