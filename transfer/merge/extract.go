package merge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/atomicfile"
	"tidemark/transfer/transaction"
)

// Origin is what an image is extracted from; block.Device is one.
type Origin interface {
	io.ReaderAt
	Size() int64                              // bytes
	Data(e extent.Extent) (extent.Set, error) // the parts of e that are not holes
}

// Extract makes the image at path, which must not exist, of what the origin would be with
// the pieces brought to it. Zeros are holes in it. It has its name only once it is whole and
// durable; until then that ends in transaction.NewEnd. The error wraps fs.ErrExist where there
// is something at either.
func (j Job) Extract(ctx context.Context, origin Origin, path string) (rep Report, err error) {
	if _, err := os.Lstat(path); err == nil {
		return rep, fmt.Errorf("image: %w", &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist})
	}
	f, err := os.OpenFile(path+transaction.NewEnd, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return rep, fmt.Errorf("image: %w: another run makes the image, or one that was killed has left it, or it is not ours", err)
	}
	if err != nil {
		return rep, fmt.Errorf("image: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	defer func() { err = errors.Join(err, f.Close()) }()
	if rep, err = j.fill(ctx, origin, f); err != nil {
		return rep, err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return rep, fmt.Errorf("image: %w", err)
	}
	return rep, atomicfile.SyncDir(filepath.Dir(path))
}

func (j Job) fill(ctx context.Context, origin Origin, f *os.File) (rep Report, err error) {
	if err := f.Truncate(origin.Size()); err != nil {
		return rep, fmt.Errorf("image: %w", err)
	}
	held, err := origin.Data(extent.Extent{Len: origin.Size()})
	if err != nil {
		return rep, err
	}
	image, err := block.Open(f.Name(), block.Options{Write: true})
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	base := Job{From: origin, Pieces: InPlace(held), Progress: j.Progress}
	all, err := base.each(ctx, func(to int64, p []byte) error {
		if block.IsZero(p) {
			return nil
		}
		_, err := image.WriteAt(p, to)
		return err
	})
	if err != nil {
		return rep, err
	}
	if tell := j.Progress; tell != nil {
		j.Progress = func(n int64) { tell(all.Bytes + n) }
	}
	rep, err = j.each(ctx, func(to int64, p []byte) error {
		if block.IsZero(p) {
			return image.Zero(extent.Extent{Off: to, Len: int64(len(p))})
		}
		_, err := image.WriteAt(p, to)
		return err
	})
	if err != nil {
		return rep, err
	}
	return rep, image.Sync()
}
