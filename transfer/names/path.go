package names

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// ErrNotAPath says that what was given for a source or target is none on this machine.
var ErrNotAPath = errors.New("it is no path on this machine")

// Check refuses (ErrNotAPath) what other programs take for a place on another machine
// or for standard input and output: "-", URLs, host:path. A file or device of such a name
// is named by "./", or by its whole path.
func Check(path string) error {
	before, _, remote := strings.Cut(path, ":")
	switch {
	case path == "":
		return fmt.Errorf("an empty name: %w", ErrNotAPath)
	case path == "-":
		return fmt.Errorf("-: %w: streams are neither source nor target (./- is a file of that name)", ErrNotAPath)
	case remote && !strings.ContainsAny(before, "/="):
		return fmt.Errorf("%s: %w (./%s is a file of that name)", path, ErrNotAPath, path)
	}
	return nil
}

// Absolute is path without symbolic links, as far as it exists.
func Absolute(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	} else if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		path = filepath.Join(dir, filepath.Base(path))
	}
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}
