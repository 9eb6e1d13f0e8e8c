package pairs

import (
	"errors"
	"fmt"
	"strings"
)

// ErrNotAPath says that what was given for a source or target is none on this machine.
var ErrNotAPath = errors.New("it is no path on this machine")

// CheckPath refuses (ErrNotAPath) what other programs take for a place on another machine
// or for standard input and output: "-", URLs, host:path. A file or device of such a name
// is named by "./", or by its whole path. All functions of this package that take the path
// of a source or target begin with it.
func CheckPath(path string) error {
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
