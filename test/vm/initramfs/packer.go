package initramfs

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// libraryDirs is where the dynamic linker of a Debian amd64 system looks.
var libraryDirs = [...]string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64"}

// programDirs is where a program given by name alone is looked for.
var programDirs = [...]string{"/sbin", "/bin", "/usr/sbin", "/usr/bin"}

// Packer adds programs of an unpacked tree to an archive, at the same paths.
type Packer struct {
	w    *Writer
	tree string
}

// NewPacker returns a Packer which adds to w from the folder tree.
func NewPacker(w *Writer, tree string) *Packer {
	return &Packer{w: w, tree: tree}
}

// Program adds a program, found by name in the tree's program folders, and all its
// libraries. A name with a slash is a path in the tree.
func (p *Packer) Program(name string) error {
	if strings.Contains(name, "/") {
		return p.file(path.Clean("/" + name))
	}
	for _, dir := range programDirs {
		if err := p.file(path.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("initramfs: %s: no such program in %s", name, p.tree)
}

// Library adds a library that programs open at run time, and what it needs.
func (p *Packer) Library(name string) error {
	return p.library(name, nil)
}

// file adds the file at a path in the tree: links with their targets, ELF files
// with their interpreter and libraries.
func (p *Packer) file(name string) error {
	host := filepath.Join(p.tree, name)
	info, err := os.Lstat(host)
	if err != nil {
		return fmt.Errorf("initramfs: %s: %w", name, err)
	}
	if p.w.done[strings.TrimPrefix(name, "/")] {
		return nil
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return p.link(name, host)
	}
	if err := p.w.Copy(name, host); err != nil {
		return err
	}
	return p.needs(name, host)
}

// link adds a symbolic link and what it points at, which is within the tree even
// when the target is absolute.
func (p *Packer) link(name, host string) error {
	target, err := os.Readlink(host)
	if err != nil {
		return fmt.Errorf("initramfs: %s: %w", name, err)
	}
	if err := p.w.Symlink(name, target); err != nil {
		return err
	}
	if !path.IsAbs(target) {
		target = path.Join(path.Dir(name), target)
	}
	return p.file(path.Clean(target))
}

// needs adds the interpreter and the libraries of an ELF file; other files need none.
func (p *Packer) needs(name, host string) error {
	f, err := elf.Open(host)
	if err != nil {
		return nil //nolint:nilerr // a script or data file
	}
	defer f.Close()
	for _, prog := range f.Progs {
		if prog.Type != elf.PT_INTERP {
			continue
		}
		interp := make([]byte, prog.Filesz)
		if _, err := prog.ReadAt(interp, 0); err != nil {
			return fmt.Errorf("initramfs: %s: interpreter: %w", name, err)
		}
		if err := p.file(strings.TrimRight(string(interp), "\x00")); err != nil {
			return err
		}
	}
	libs, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("initramfs: %s: libraries: %w", name, err)
	}
	runpath, err := f.DynString(elf.DT_RUNPATH)
	if err != nil {
		return fmt.Errorf("initramfs: %s: run path: %w", name, err)
	}
	for _, lib := range libs {
		if err := p.library(lib, runpath); err != nil {
			return fmt.Errorf("%w (needed by %s)", err, name)
		}
	}
	return nil
}

func (p *Packer) library(name string, runpath []string) error {
	for _, dir := range append(runpath, libraryDirs[:]...) {
		if err := p.file(path.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("initramfs: %s: no such library in %s", name, p.tree)
}
