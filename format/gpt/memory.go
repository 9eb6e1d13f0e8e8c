package gpt

import (
	"errors"
	"io"
	"io/fs"
	"slices"
)

// memory is a disk as the library wants one, that remembers what is written to it.
type memory struct {
	io.ReaderAt
	writes []write
}

// write is one write to a disk.
type write struct {
	off  int64
	data []byte
}

// WriteAt implements io.WriterAt.
func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.writes = append(m.writes, write{off, slices.Clone(p)})
	return len(p), nil
}

// errNone is the error of what a table does not need of a disk.
var errNone = errors.New("gpt: not to be used")

// Read, Seek, Stat and Close are what the library's interface has besides.
func (*memory) Read([]byte) (int, error)       { return 0, errNone }
func (*memory) Seek(int64, int) (int64, error) { return 0, errNone }
func (*memory) Stat() (fs.FileInfo, error)     { return nil, errNone }
func (*memory) Close() error                   { return errNone }
