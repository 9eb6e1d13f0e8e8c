package dm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// failed wraps the kernel's error of a call, and the error of this package that it means
// for most calls.
func (r *request) failed(err error) error {
	switch {
	case errors.Is(err, unix.ENXIO):
		err = fmt.Errorf("%w: %w", ErrNotFound, err)
	case errors.Is(err, unix.EBUSY) && (r.cmd == cmdDevCreate || r.cmd == cmdDevRename):
		err = fmt.Errorf("%w: %w", ErrExists, err)
	case errors.Is(err, unix.EBUSY):
		err = fmt.Errorf("%w: %w", ErrBusy, err)
	case errors.Is(err, unix.ENOTTY):
		err = fmt.Errorf("%w: %w", ErrNotSupported, err)
	case errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%w (it takes CAP_SYS_ADMIN: run as root)", err)
	}
	return fmt.Errorf("dm: %s: %w", r.what(), err)
}

// users describes the holders of a device, as far as the kernel tells: ", opened 2 times, part
// of dm-3".
func (c *Control) users(name string) string {
	info, err := c.Info(name)
	if err != nil {
		return ""
	}
	said := ""
	if info.OpenCount > 0 {
		said = fmt.Sprintf(", opened %d times", info.OpenCount)
	}
	holders, err := os.ReadDir(filepath.Join(info.Dev().Dir(), "holders"))
	if err != nil || len(holders) == 0 {
		return said
	}
	var names []string
	for _, h := range holders {
		names = append(names, h.Name())
	}
	return said + ", part of " + strings.Join(names, " ")
}

// unknownType returns the first type of a table that the kernel has no target for.
// It is asked only after a load failed, when the kernel has tried to load modules.
func (c *Control) unknownType(table []Target) (int, bool) {
	known, err := c.Targets()
	if err != nil {
		return 0, false
	}
	for i, t := range table {
		if !slices.ContainsFunc(known, func(k TargetType) bool { return k.Name == t.Type }) {
			return i, true
		}
	}
	return 0, false
}

// blame names the target that a failure belongs to; of several targets it lists the types.
func blame(table []Target) string {
	if len(table) == 1 {
		return "target 0 (" + table[0].Type + ")"
	}
	var types []string
	for _, t := range table {
		types = append(types, t.Type)
	}
	slices.Sort(types)
	return fmt.Sprintf("one of %d targets (%s)", len(table), strings.Join(slices.Compact(types), ", "))
}
