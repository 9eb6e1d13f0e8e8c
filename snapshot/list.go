package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"tidemark/extent"
	"tidemark/format/datto"
	"tidemark/linux/atomicfile"
)

// ListPath returns where the list of what changed from the snapshot before to this one is, when
// nothing else was asked for. It stays until the next one, or until the snapshot is destroyed.
func (s *Snapshot) ListPath(v *Volume) string {
	return filepath.Join(s.o.folder(), s.Name+"+"+v.Name+".datto")
}

// replaceable refuses a path at which there is something else than a list. The error wraps
// fs.ErrExist.
func replaceable(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Stat(filepath.Dir(path))
		return err
	}
	if err != nil {
		return err
	}
	if info.Mode().IsRegular() {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := datto.Open(f, info.Size()); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s: %w, and is no list of changes, as is to be there: move it away", path, fs.ErrExist)
}

// writeList writes what changed of a volume of size bytes as a COW file of dattobd that is
// closed.
func writeList(path string, size int64, c Chain, set extent.Set) error {
	return atomicfile.Write(path, atomicfile.Options{Mode: 0o600, Durable: true}, func(f *os.File) error {
		w, err := datto.NewWriter(f, size, datto.Header{UUID: c.UUID, Sequence: c.Sequence, Version: 1, IndexOnly: true})
		if err != nil {
			return err
		}
		for _, e := range set.Align(datto.BlockSize, size).Extents() {
			for at := e.Off; at < e.End(); at += datto.BlockSize {
				if err := w.Add(at/datto.BlockSize, nil); err != nil {
					return err
				}
			}
		}
		end, err := w.End(f.Sync)
		if err != nil {
			return err
		}
		return f.Truncate(end)
	})
}
