package boot

import (
	"cmp"
	"debug/elf"
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

// programPlaces is where tidemark is looked for in a system that does not run.
var programPlaces = [...]string{"/usr/bin/tidemark", "/usr/sbin/tidemark", "/usr/local/bin/tidemark", "/usr/local/sbin/tidemark"}

// Program returns the path, in the system, of the program that the boot calls: the given
// path, or the path that was installed before, or the path where the program is found.
// The program must be a static executable: an initramfs has no libraries for it.
// Otherwise the error wraps ErrUnsuitable.
func (s *System) Program(given string) (string, error) {
	known, err := readRecord(s.root)
	if err != nil {
		return "", err
	}
	program := cmp.Or(given, known.Program)
	if program == "" && s.Running() {
		if program, err = os.Executable(); err != nil {
			return "", fmt.Errorf("boot: %w", err)
		}
	}
	if program == "" {
		at := slices.IndexFunc(programPlaces[:], func(p string) bool { return s.has(p) })
		if at < 0 {
			return "", fmt.Errorf("boot: %w: there is no tidemark in %s", ErrUnsuitable, s.dir)
		}
		program = programPlaces[at]
	}
	return program, s.checkProgram(program)
}

func (s *System) checkProgram(program string) error {
	if !path.IsAbs(program) || strings.ContainsAny(program, " \t\n\"'$%@\\*?") {
		return fmt.Errorf("boot: %s: %w: not an absolute path without special letters", program, ErrUnsuitable)
	}
	f, err := s.root.Open(inside(program))
	if err != nil {
		return fmt.Errorf("boot: %w: %w", ErrUnsuitable, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("boot: %s: %w: not an executable file", program, ErrUnsuitable)
	}
	bin, err := elf.NewFile(f)
	if err != nil {
		return fmt.Errorf("boot: %s: %w: %w", program, ErrUnsuitable, err)
	}
	for _, p := range bin.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("boot: %s: %w: it needs libraries; take a static tidemark", program, ErrUnsuitable)
		}
	}
	return nil
}
