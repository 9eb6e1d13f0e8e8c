package boot

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"tidemark/block"
	"tidemark/linux/sysfs"
	"tidemark/track/bpf"
)

// PlaceOf returns where the tracking of a disk of the table is saved: below the state folder, or where
// MakePlace has made a place.
func (t Tab) PlaceOf(stateDir, disk string) bpf.Place {
	dir := filepath.Join(stateDir, "tracking")
	if _, err := os.Stat(onRoot); err == nil {
		dir = onRoot
	}
	return bpf.Place{Dir: dir, Name: escape(disk), Root: disk == t.TrackedRoot()}
}

// Lasting tells whether the next reboot keeps the marks of what is tracked by eBPF, if it is clean,
// and why not. It is a look at the system as it was when it was made.
type Lasting struct {
	Status
	sys      *System
	table    Tab
	stateDir string
	why      map[string]string // of LostAtReboot, by disk
	blind    string            // why a kernel that is installed cannot track
}

// Lasting looks at the system, whose state folder is that.
func (s *System) Lasting(stateDir string) (l *Lasting, err error) {
	l = &Lasting{sys: s, stateDir: stateDir, why: map[string]string{}}
	if l.table, err = s.Tab(); err != nil {
		return nil, err
	}
	if l.Status, err = s.Status(); err != nil {
		return nil, err
	}
	if l.blind, err = s.blind(); err != nil {
		return nil, err
	}
	for i, d := range l.Tracked {
		why := l.lost(d.Disk)
		if id, err := block.Identify(d.Disk); err == nil && s.Running() { // else it is not there
			l.why[id.Disk] = why
		}
		l.Tracked[i].LostAtReboot = why
	}
	return l, nil
}

// Lost says why the next reboot of the running system loses the marks of a disk, named as the kernel
// does; empty when a clean one keeps them.
func (l *Lasting) Lost(disk string) string {
	if why, ok := l.why[disk]; ok {
		return why
	}
	if _, err := CheckTracked(sysfs.DevPath(disk)); err != nil {
		return losesBecause(err.Error())
	}
	return fmt.Sprintf("it loses the marks; \"tidemark boot install --track /dev/%s\" keeps them over a clean one", disk)
}

func losesBecause(why string) string {
	return "it loses the marks: " + strings.TrimPrefix(why, "boot: ")
}

// lost is Lost of a disk of the table. Of a system that does not run only files, kernels and images
// are judged.
func (l *Lasting) lost(name string) string {
	if bad := l.badFor(name); len(bad) > 0 {
		return losesBecause(strings.Join(bad, ", ") + " (tidemark boot install --update)")
	}
	if l.blind != "" {
		return losesBecause(l.blind)
	}
	if !l.sys.Running() {
		return ""
	}
	// Only a unit that is active does something at a shutdown.
	if unit := l.table.TrackUnit(name); exec.Command("systemctl", "--quiet", "is-active", unit).Run() != nil {
		return losesBecause(fmt.Sprintf("%s is not active (systemctl start '%s')", unit, unit))
	}
	if _, err := CheckTracked(name); err != nil { // what it needs may have changed since
		return losesBecause(err.Error())
	}
	if lacks, err := lacksPlace(); err != nil {
		return losesBecause(err.Error())
	} else if lacks {
		return losesBecause(fmt.Sprintf("%s is a filesystem of its own (tidemark boot install --track %s)", stateHome, name))
	}
	if at := l.table.PlaceOf(l.stateDir, name); at.Root {
		if err := at.Check(); err != nil {
			return losesBecause(fmt.Sprintf("%v (tidemark track resume %s)", err, name))
		}
	}
	return ""
}

// badFor says which files and images that the tracking of a disk needs are not as they should be:
// for that of root all of them.
func (l *Lasting) badFor(name string) []string {
	if name == l.table.TrackedRoot() {
		return l.Bad()
	}
	own := Status{}
	for _, f := range l.Files {
		if base := filepath.Base(f.Path); base == trackUnit || base == l.table.TrackUnit(name) {
			own.Files = append(own.Files, f)
		}
	}
	return own.Bad()
}

// needed is what a kernel must have been built with to track.
var needed = [...]string{"CONFIG_BPF_SYSCALL", "CONFIG_DEBUG_INFO_BTF"}

// blind says which kernel in the system's /boot cannot track, "" for none: the next boot may be with
// any of them. Those whose configuration is not there count as able.
func (s *System) blind() (string, error) {
	configs, err := filepath.Glob(filepath.Join(s.dir, "boot/config-*"))
	if err != nil {
		return "", fmt.Errorf("boot: %w", err)
	}
	for _, path := range configs {
		config, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("boot: %w", err)
		}
		for _, option := range needed {
			if !bytes.Contains(append([]byte("\n"), config...), []byte("\n"+option+"=y\n")) {
				name := filepath.Base(path)
				return fmt.Sprintf("the kernel %s cannot track: %s is not set in /boot/%s", strings.TrimPrefix(name, "config-"), option, name), nil
			}
		}
	}
	return "", nil
}
