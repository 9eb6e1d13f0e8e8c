package boot

import (
	"cmp"
	"debug/buildinfo"
	"debug/elf"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
)

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

// EarlyProgram returns the path of the program that goes into an initramfs in place of the whole
// one, beside which it is.
func EarlyProgram(program string) string { return program + "-boot" }

// CheckEarly fails when an initramfs could not be made with what belongs to the program: EarlyProgram
// is not there, is no static executable, or is of another build. The error wraps ErrUnsuitable.
func (s *System) CheckEarly(program string) error {
	early := EarlyProgram(program)
	switch s.earlyState(program) {
	case Missing:
		return fmt.Errorf("boot: %s: %w: it is not there, and the initramfs needs it: install both tidemark and tidemark-boot", early, ErrUnsuitable)
	case OtherBuild:
		return fmt.Errorf("boot: %s: %w: it is of another build than %s: install both of one", early, ErrUnsuitable, program)
	}
	return s.checkProgram(early)
}

// build says what a program was built from: the toolchain and the state of the source. It is "" for
// one that does not tell.
func (s *System) build(program string) string {
	f, err := s.root.Open(inside(program))
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := buildinfo.Read(f)
	if err != nil {
		return "" // no program of Go's: checkProgram judges what it is
	}
	var text strings.Builder
	text.WriteString(info.GoVersion)
	for _, set := range info.Settings {
		if strings.HasPrefix(set.Key, "vcs.") {
			text.WriteString(" " + set.Key + "=" + set.Value)
		}
	}
	return text.String()
}

// earlyState is the state of EarlyProgram.
func (s *System) earlyState(program string) FileState {
	switch early := EarlyProgram(program); {
	case !s.has(early):
		return Missing
	case s.build(early) != s.build(program):
		return OtherBuild
	}
	return Same
}
