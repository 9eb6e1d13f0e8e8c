package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// System is the system, running or not, whose boot is set up. Close it after use.
type System struct {
	dir  string
	root *os.Root
}

// OpenSystem opens the system below a folder, "/" for the running one. Symbolic links
// that lead out of the folder, and absolute ones, are not followed.
func OpenSystem(dir string) (*System, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	return &System{filepath.Clean(dir), root}, nil
}

// Close closes the system.
func (s *System) Close() error { return s.root.Close() }

// Running reports whether this is the running system.
func (s *System) Running() bool { return s.dir == "/" }

// inside is the path as os.Root takes it.
func inside(p string) string { return strings.TrimPrefix(path.Clean(p), "/") }

// Tab reads the table of era devices; a missing table is empty. The error wraps ErrTab.
func (s *System) Tab() (Tab, error) {
	data, err := s.root.ReadFile(inside(TabPath))
	if errors.Is(err, fs.ErrNotExist) {
		return Tab{}, nil
	}
	if err != nil {
		return Tab{}, fmt.Errorf("boot: %w", err)
	}
	return ParseTab(data)
}

// Generators lists the programs of the system that make initramfs images.
func (s *System) Generators() []Generator {
	var all []Generator
	if s.has("/usr/sbin/mkinitramfs", "/sbin/mkinitramfs") {
		all = append(all, InitramfsTools)
	}
	if s.has("/usr/bin/dracut", "/usr/sbin/dracut") {
		all = append(all, Dracut)
	}
	return all
}

// has reports whether one of the files is there.
func (s *System) has(paths ...string) bool {
	return slices.ContainsFunc(paths, func(p string) bool {
		_, err := s.root.Stat(inside(p))
		return err == nil
	})
}
