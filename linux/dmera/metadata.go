package dmera

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"tidemark/block"
	"tidemark/format/era"
)

// metadata reads the metadata device while the kernel uses it. It reads past the page
// cache, because the kernel writes past it.
type metadata struct {
	dev *block.Device
	ctx context.Context // ends reading; nil: nothing does
}

func openMetadata(path string) (*metadata, error) {
	dev, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return nil, err
	}
	return &metadata{dev: dev}, nil
}

// ReadAt implements io.ReaderAt. The kernel may write the superblock during a read, and
// the read may see half of that: ReadAt repeats it until two reads are the same.
func (m *metadata) ReadAt(p []byte, off int64) (int, error) {
	if m.ctx != nil && m.ctx.Err() != nil {
		return 0, context.Cause(m.ctx)
	}
	n, err := m.dev.ReadAt(p, off)
	if off != 0 || err != nil {
		return n, err
	}
	again := make([]byte, len(p))
	for range 100 {
		if n, err = m.dev.ReadAt(again, off); err != nil || bytes.Equal(p, again) {
			break
		}
		copy(p, again)
	}
	return n, err
}

func (m *metadata) Close() error { return m.dev.Close() }

func (m *metadata) open() (*era.Metadata, error) { return era.Open(m, m.dev.Size()) }

func (m *metadata) superblock() (era.Superblock, error) {
	md, err := m.open()
	if err != nil {
		return era.Superblock{}, fmt.Errorf("%s: %w", m.dev.Path(), err)
	}
	return md.Superblock(), nil
}

// held returns the held snapshot, nil when there is none. The caller must check that it
// is still held after its last read.
func (m *metadata) held() (*era.View, error) {
	md, err := m.open()
	if err == nil {
		var v *era.View
		if v, err = md.Snapshot(); err == nil {
			return v, nil
		}
	}
	if errors.Is(err, era.ErrNoSnapshot) {
		return nil, nil
	}
	return nil, fmt.Errorf("%s: %w", m.dev.Path(), err)
}
