package pairs

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/zeebo/blake3"

	"tidemark/block"
	"tidemark/linux/atomicfile"
	"tidemark/linux/sysfs"
	"tidemark/transfer/mirror"
)

// registryDir is the folder of the state folder that has one file for each mirror that was
// made or updated on this machine.
const registryDir = "mirrors"

// entry is one of these files.
type entry struct {
	Path   string    `json:"path"`   // of the target when a run last used it: absolute, without symbolic links
	Folder string    `json:"folder"` // of what is known of it, absolute
	Device bool      `json:"device,omitempty"`
	Since  time.Time `json:"since"` // of the first run
}

// hashed is a file name for something that is none.
func hashed(name string) string {
	sum := blake3.Sum256([]byte(name))
	return hex.EncodeToString(sum[:8])
}

func (e entry) file(stateDir string) string {
	return filepath.Join(stateDir, registryDir, hashed(e.Folder)+".json")
}

// register remembers that there is this mirror. Most runs find that known already, and
// write nothing.
func (t *target) register(stateDir string) error {
	is := entry{Path: t.path, Folder: absolute(t.folder), Device: t.device, Since: time.Now()}
	file, was := is.file(stateDir), entry{}
	err := atomicfile.ReadJSON(file, &was)
	switch {
	case err == nil && was.Path == is.Path && was.Device == is.Device:
		return nil
	case err == nil:
		is.Since = was.Since
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, atomicfile.ErrDamaged):
		return err
	}
	if err := atomicfile.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return atomicfile.WriteJSON(file, atomicfile.Options{Durable: true}, is)
}

// forget has all forgotten that is known of the target as a mirror, and that it was one.
func (t *target) forget(stateDir string) error {
	if err := mirror.Forget(t.dir); err != nil {
		return err
	}
	err := entry{Folder: absolute(t.folder)}.remove(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// remove takes it from the list.
func (e entry) remove(stateDir string) error {
	if err := os.Remove(e.file(stateDir)); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Join(stateDir, registryDir))
}

// registered lists the mirrors that are known here, by path.
func registered(stateDir string) ([]entry, error) {
	files, err := os.ReadDir(filepath.Join(stateDir, registryDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []entry
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".json") || strings.HasPrefix(f.Name(), ".") {
			continue // a replacement that was cut off
		}
		var e entry
		err := atomicfile.ReadJSON(filepath.Join(stateDir, registryDir, f.Name()), &e)
		if errors.Is(err, fs.ErrNotExist) {
			continue // forgotten just now
		}
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b entry) int { return strings.Compare(a.Path, b.Path) })
	return all, nil
}

// Paths lists where the mirrors are that are known here, or were when a run last used them.
// What cannot be read is left out.
func Paths(stateDir string) (paths []string) {
	all, _ := registered(Options{StateDir: stateDir}.withDefaults().StateDir)
	for _, e := range all {
		paths = append(paths, e.Path)
	}
	return paths
}

// Forget takes the mirror at path from the list of those that are known here, whether it
// is still there or not. The mirror and what is known of it stay as they are, and the next
// run lists it again. The error wraps ErrNoMirror when the list has none at path.
func Forget(path, stateDir string) error {
	o := Options{StateDir: stateDir}.withDefaults()
	all, err := registered(o.StateDir)
	if err != nil {
		return err
	}
	path = absolute(path)
	found := false
	for _, e := range all {
		if e.Path != path {
			continue
		}
		found = true
		if err := e.remove(o.StateDir); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("%s: %w: the list in %s has none of that name", path, ErrNoMirror, filepath.Join(o.StateDir, registryDir))
	}
	return nil
}

// current is the path by which the mirror can be found today: a device may have got
// another name since.
func (e entry) current(stateDir string) string {
	if t, err := findTarget(e.Path, stateDir); !e.Device || err == nil && absolute(t.folder) == e.Folder {
		return e.Path
	}
	names, _ := os.ReadDir("/sys/class/block") // without any it is missing, and that is told
	for _, n := range names {
		path := sysfs.DevPath(n.Name())
		id, err := block.Identify(path)
		if err == nil && absolute(deviceFolder(stateDir, id, path)) == e.Folder {
			return path
		}
	}
	return ""
}
