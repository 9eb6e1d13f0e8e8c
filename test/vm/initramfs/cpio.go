// Package initramfs builds the root file systems that the VM tests boot: newc cpio
// archives, with programs taken from a tree of unpacked Debian packages together
// with every library they load, and kernel modules with every module they need.
//
// Archives may be concatenated; the kernel unpacks one after the other. A Writer
// and a Packer are for one goroutine each.
package initramfs

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// File types of the newc format, as in stat(2).
const (
	typeDir     = 0o040000
	typeFile    = 0o100000
	typeSymlink = 0o120000
	typeChar    = 0o020000
)

// pad aligns headers and data, per Documentation/driver-api/early-userspace/buffer-format.rst.
const pad = 4

// Writer writes one archive. Paths are slash-separated and relative to the root;
// missing parent folders are added, and a path given twice is written once.
type Writer struct {
	w     io.Writer
	inode int
	done  map[string]bool
}

// NewWriter returns a Writer of an archive on w.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: w, done: map[string]bool{".": true, "/": true}}
}

// Dir adds a folder.
func (w *Writer) Dir(name string) error {
	return w.add(name, typeDir|0o755, 0, nil)
}

// File adds a file of the given permissions and content.
func (w *Writer) File(name string, perm fs.FileMode, data []byte) error {
	return w.add(name, typeFile|uint32(perm.Perm()), 0, data)
}

// Symlink adds a symbolic link that holds target.
func (w *Writer) Symlink(name, target string) error {
	return w.add(name, typeSymlink|0o777, 0, []byte(target))
}

// Char adds a character device node.
func (w *Writer) Char(name string, major, minor uint8) error {
	return w.add(name, typeChar|0o600, uint32(major)<<8|uint32(minor), nil)
}

// Copy adds the host's file from under the name given, links followed.
func (w *Writer) Copy(name, from string) error {
	info, err := os.Stat(from)
	if err != nil {
		return fmt.Errorf("initramfs: %s: %w", name, err)
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("initramfs: %s: %w", name, err)
	}
	return w.File(name, info.Mode(), data)
}

// CopyTree adds the host's folder from, with all below it, under the name given.
// Symbolic links are followed.
func (w *Writer) CopyTree(name, from string) error {
	return fs.WalkDir(os.DirFS(from), ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("initramfs: %s: %w", name, err)
		}
		if e.IsDir() {
			return w.Dir(path.Join(name, p))
		}
		return w.Copy(path.Join(name, p), path.Join(from, p))
	})
}

// Close ends the archive.
func (w *Writer) Close() error {
	return w.entry("TRAILER!!!", 0, 0, nil)
}

func (w *Writer) add(name string, mode, rdev uint32, data []byte) error {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" || w.done[name] {
		return nil
	}
	if err := w.Dir(path.Dir(name)); err != nil {
		return err
	}
	w.done[name] = true
	return w.entry(name, mode, rdev, data)
}

// entry writes one header, its name and its data, each padded.
func (w *Writer) entry(name string, mode, rdev uint32, data []byte) error {
	w.inode++
	head := fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		w.inode, mode, 0, 0, 1, 0, len(data), 0, 0, rdev>>8, rdev&0xff, len(name)+1, 0, name)
	for _, part := range [][]byte{head, data} {
		if _, err := w.w.Write(part); err != nil {
			return fmt.Errorf("initramfs: %s: %w", name, err)
		}
		if _, err := w.w.Write(make([]byte, -len(part)&(pad-1))); err != nil {
			return fmt.Errorf("initramfs: %s: %w", name, err)
		}
	}
	return nil
}
