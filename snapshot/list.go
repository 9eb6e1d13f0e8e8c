package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"tidemark/extent"
	"tidemark/format/datto"
	"tidemark/linux/atomicfile"
)

// ListPath returns where the list of what changed from the snapshot before to this one is, when
// nothing else was asked for. It stays until the next one, or until the snapshot is destroyed.
func (s *Snapshot) ListPath(v *Volume) string {
	return filepath.Join(s.o.folder(), s.Name+"+"+v.Name+".datto")
}

// replaceable refuses a path at which there is something else than a list that is whole. The error
// wraps fs.ErrExist.
func replaceable(path string) error {
	info, err := os.Lstat(path)
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
		list, err := datto.Open(f, info.Size())
		if err == nil && list.Header().IndexOnly && list.Header().Clean {
			return nil
		}
	}
	return fmt.Errorf("%s: %w, and is no list of changes, as is to be there: move it away", path, fs.ErrExist)
}

// placeLists fills in where the lists of the volumes are to be, and refuses what is there.
func (s *Snapshot) placeLists(paths []string) (err error) {
	for i, v := range s.Volumes {
		if paths[i] == "" {
			paths[i] = s.ListPath(v)
		}
		if paths[i], err = filepath.Abs(paths[i]); err != nil {
			return err
		}
		store := func(v *Volume) bool { return v.Store.Path == paths[i] }
		if slices.Contains(paths[:i], paths[i]) || slices.ContainsFunc(s.Volumes, store) {
			return fmt.Errorf("%s: %w: each list, and each store, has a place of its own", paths[i], fs.ErrExist)
		}
		if err := replaceable(paths[i]); err != nil {
			return err
		}
	}
	return nil
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
