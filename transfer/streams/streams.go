// Package streams brings streams of changed blocks (package erastream) to targets that
// are named by path.
//
// For most uses, call [Apply] with the path of an image or device and the stream, and
// [Recover] when an error of it wraps apply.ErrPending.
//
// The package is to package apply what package pairs is to the engine: it finds the
// folder beside a target, opens and locks both, and refuses a target that is in use
// (inuse.ErrInUse), is the stream itself (ErrRefused), or is a mirror (target.ErrMirror). Nothing
// has been written to a target that is refused. Functions on different targets may run at the same time.
package streams

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/transfer/apply"
	"tidemark/transfer/inuse"
	"tidemark/transfer/target"
	"tidemark/transfer/transaction"
)

// ErrRefused refuses a target that is the stream itself.
var ErrRefused = errors.New("refused")

// Options say what to do with a target. The zero value works.
type Options struct {
	apply.Options
	StateDir string      // target.DefaultStateDir when empty
	Mode     fs.FileMode // of an image that is made
	// Note, if not nil, is told what an earlier run had left to finish or to discard.
	Note func(text string)
}

// Apply reads a stream to its end and brings it to the target at path, which is made when
// it does not exist. First it brings to an end what an earlier run left, as o.Waiting says.
// The errors are those of packages apply and transaction, ErrRefused, and inuse.ErrInUse.
func Apply(ctx context.Context, path string, in io.Reader, o Options) (apply.Report, error) {
	place, err := find(path, in, o)
	switch {
	case err != nil:
		return apply.Report{}, err
	case place.Exists:
		return o.update(ctx, place, in)
	}
	return o.create(ctx, place, in)
}

// Check reads a stream to its end and reports what Apply would do, and the errors that it
// would meet before anything is written. It writes nothing.
func Check(ctx context.Context, path string, in io.Reader, o Options) (apply.Report, error) {
	place, err := find(path, in, o)
	if err != nil {
		return apply.Report{}, err
	}
	if !place.Exists {
		return apply.Check(ctx, in, -1, o.Options)
	}
	d, err := block.Open(place.Path, block.Options{})
	if err != nil {
		return apply.Report{}, err
	}
	defer d.Close()
	return apply.Check(ctx, in, d.Size(), mayGrow(d, o.Options))
}

// Recover brings to an end what an earlier run left for the target at path, as o.Waiting
// says, and reads no stream.
func Recover(ctx context.Context, path string, o Options) (apply.Report, error) {
	place, err := find(path, nil, o)
	switch {
	case err != nil:
		return apply.Report{}, err
	case place.Exists:
		return o.update(ctx, place, eof{})
	case o.Waiting == transaction.Discard:
		return apply.Report{}, o.discard(place)
	}
	return apply.Report{}, &fs.PathError{Op: "recover", Path: place.Path, Err: fs.ErrNotExist}
}

// eof is an empty stream.
type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// find looks at what path is and refuses what must not be written to.
func find(path string, in io.Reader, o Options) (*target.Target, error) {
	place, err := target.Find(path, o.StateDir)
	if err != nil {
		return place, fmt.Errorf("target: %w", err)
	}
	if err := place.RefuseMirror(); err != nil || !place.Exists {
		return place, err
	}
	if f, ok := in.(*os.File); ok {
		same, err := isFile(place.Path, f)
		if err == nil && same {
			err = fmt.Errorf("%w: it is the stream", ErrRefused)
		}
		if err != nil {
			return place, err
		}
	}
	return place, place.RefuseUsed()
}

// isFile reports whether path leads to an open file.
func isFile(path string, f *os.File) (bool, error) {
	a, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	b, err := f.Stat()
	return err == nil && os.SameFile(a, b), err
}

// mayGrow lets an image grow that is empty: somebody has made it to be filled.
func mayGrow(d *block.Device, o apply.Options) apply.Options {
	o.Grow = !d.IsDevice() && (o.Grow || d.Size() == 0)
	return o
}

func (o Options) create(ctx context.Context, place *target.Target, in io.Reader) (rep apply.Report, err error) {
	dir, err := apply.OpenDir(place.Folder, place.Path, o.Mode)
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := place.RefuseMirror(); err != nil {
		return rep, err
	}
	return apply.Create(ctx, dir, in, o.Options)
}

// discard forgets what waits for a target that is gone.
func (o Options) discard(place *target.Target) (err error) {
	dir, err := apply.OpenDir(place.Folder, place.Path, o.Mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	done, err := transaction.Forget(dir)
	if done {
		o.note(string(transaction.Discarded))
	}
	return err
}

// update changes a target that exists.
func (o Options) update(ctx context.Context, place *target.Target, in io.Reader) (rep apply.Report, err error) {
	dir, err := apply.OpenDir(place.Folder, place.Path, o.Mode)
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := place.RefuseMirror(); err != nil {
		return rep, err
	}
	// The folder is locked: another run of ours is none of those that are found.
	if err := place.RefuseOpeners(); err != nil {
		return rep, err
	}
	d, err := block.Open(place.Path, block.Options{Write: true, Exclusive: true})
	if errors.Is(err, unix.EBUSY) {
		return rep, fmt.Errorf("%s: %w", place.Path, inuse.ErrInUse)
	}
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	store, err := apply.Open(transaction.Disk{Device: d}, dir, o.Options)
	if err != nil {
		return rep, err
	}
	o.note(store.Recovered())
	return store.Apply(ctx, in, mayGrow(d, o.Options))
}

func (o Options) note(text string) {
	if o.Note != nil && text != "" {
		o.Note(text)
	}
}
