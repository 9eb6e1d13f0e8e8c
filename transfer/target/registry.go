package target

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

	"tidemark/linux/atomicfile"
	"tidemark/transfer/mirror"
	"tidemark/transfer/names"
	"tidemark/transfer/origin"
)

// registryDir is the folder of the state folder that has one file for each mirror that was
// made or updated on this machine.
const registryDir = "mirrors"

// Entry is one of these files.
type Entry struct {
	Path   string    `json:"path"`   // of the target when a run last used it: absolute, without symbolic links
	Folder string    `json:"folder"` // of what is known of it, absolute
	Device bool      `json:"device,omitempty"`
	Since  time.Time `json:"since"` // of the first run
}

func listDir(stateDir string) string { return filepath.Join(orDefault(stateDir), registryDir) }

// Hashed is a file name for something that is none.
func Hashed(name string) string {
	sum := blake3.Sum256([]byte(name))
	return hex.EncodeToString(sum[:8])
}

func (e Entry) file(stateDir string) string {
	return filepath.Join(listDir(stateDir), Hashed(e.Folder)+".json")
}

// Register remembers that there is this mirror. Most runs find that known already, and
// write nothing.
func (t *Target) Register() error {
	is := Entry{Path: t.Path, Folder: names.Absolute(t.Folder), Device: t.Device, Since: time.Now()}
	file, was := is.file(t.stateDir), Entry{}
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

// Forget has all forgotten that is known of the target as a mirror, and that it was one.
func (t *Target) Forget() error {
	if err := mirror.Forget(t.Dir); err != nil {
		return err
	}
	err := Entry{Folder: names.Absolute(t.Folder)}.remove(t.stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// remove takes it from the list.
func (e Entry) remove(stateDir string) error {
	if err := os.Remove(e.file(stateDir)); err != nil {
		return err
	}
	return atomicfile.SyncDir(listDir(stateDir))
}

// Registered lists the mirrors that are known here, by path.
func Registered(stateDir string) ([]Entry, error) {
	files, err := os.ReadDir(listDir(stateDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []Entry
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".json") || strings.HasPrefix(f.Name(), ".") {
			continue // a replacement that was cut off
		}
		var e Entry
		err := atomicfile.ReadJSON(filepath.Join(listDir(stateDir), f.Name()), &e)
		if errors.Is(err, fs.ErrNotExist) {
			continue // forgotten just now
		}
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	return all, nil
}

// Paths lists where the mirrors are that are known here, or were when a run last used them.
// What cannot be read is left out.
func Paths(stateDir string) (paths []string) {
	all, _ := Registered(stateDir)
	for _, e := range all {
		paths = append(paths, e.Path)
	}
	return paths
}

// Forget takes the mirror at path from the list of those that are known here, whether it
// is still there or not. The mirror and what is known of it stay as they are, and the next
// run lists it again. The error wraps ErrNoMirror when the list has none at path.
func Forget(path, stateDir string) error {
	all, err := Registered(stateDir)
	if err != nil {
		return err
	}
	path = names.Absolute(path)
	found := false
	for _, e := range all {
		if e.Path != path {
			continue
		}
		found = true
		if err := e.remove(stateDir); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("%s: %w: the list in %s has none of that name", path, ErrNoMirror, listDir(stateDir))
	}
	return nil
}

// Current is the path by which the mirror can be found today: a device may have got
// another name since.
func (e Entry) Current(stateDir string) string {
	if t, err := Find(e.Path, stateDir); !e.Device || err == nil && names.Absolute(t.Folder) == e.Folder {
		return e.Path
	}
	for path, id := range origin.Devices() {
		if names.Absolute(deviceFolder(stateDir, id, path)) == e.Folder {
			return path
		}
	}
	return ""
}
