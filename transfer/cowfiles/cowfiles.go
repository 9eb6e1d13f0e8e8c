// Package cowfiles brings what dattobd's COW files name to images: the blocks that changed from
// one snapshot to the next, to an image of the one before; and what a snapshot kept, to an
// image of the snapshot.
//
// For most uses, call Merge with the snapshot's device, the COW file that was closed when it
// was taken, and the image of the snapshot before. Open looks into a COW file, Extract makes
// an image of a snapshot without the driver.
//
// The package is to package merge what paths are to files: it opens all of them, holds the
// COW file against its format (package datto), against the driver's answer and against the
// sizes, and refuses what does not belong together (ErrOther, ErrWrongImage). The image is old
// or new, whatever crashes. Functions on different images may run at the same time.
package cowfiles

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/datto"
	"tidemark/transfer/inuse"
	"tidemark/transfer/merge"
	"tidemark/transfer/target"
)

var (
	// ErrNoDriver says that the driver, which knows which snapshot a device is, does not
	// answer.
	ErrNoDriver = errors.New("the driver does not answer")
	// ErrWrongImage refuses an image that is none of the snapshot before. It wraps
	// target.ErrRefused.
	ErrWrongImage = fmt.Errorf("%w: it is no image of the snapshot before", target.ErrRefused)
)

// driverInfo is where the drivers answer, by the name of their devices.
var driverInfo = map[string]string{"datto": "/proc/datto-info", "elastio-snap": "/proc/elastio-snap-info"}

// File is an open COW file.
type File struct {
	*datto.File
	device *block.Device
}

// Open opens the COW file at path. The errors are those of package datto.
func Open(path string) (*File, error) {
	d, err := block.Open(path, block.Options{})
	if err != nil {
		return nil, fmt.Errorf("COW file: %w", err)
	}
	f, err := datto.Open(d, d.Size())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("COW file: %s: %w", path, err), d.Close())
	}
	return &File{f, d}, nil
}

// Close closes the file.
func (f *File) Close() error { return f.device.Close() }

// Options say how to merge. The zero value works.
type Options struct {
	StateDir string // target.DefaultStateDir when empty
	// Info is a file with the driver's answer, in the place of the driver's own.
	Info string
	// Known, if not nil, is asked first without Info, with the snapshot open: nil for a device that it
	// does not know.
	Known func(snapshot string) (*datto.DeviceInfo, error)
	// Minor is the driver's number of the snapshot; below 0 it is told by the device's name,
	// or by an answer that has one device alone.
	Minor int
	// DryRun has all judged and compared, and nothing written.
	DryRun bool
	// Progress, if not nil, is told of the bytes that are done of how many in a phase. It
	// is called by one goroutine at a time.
	Progress func(phase string, done, total int64)
	// Note, if not nil, is told what an earlier run had left to finish.
	Note func(text string)
}

func (o Options) progress(phase string, total int64) func(int64) {
	if o.Progress == nil {
		return nil
	}
	return func(done int64) { o.Progress(phase, done, total) }
}

// Report is what Merge did.
type Report struct {
	merge.Report
	Blocks int64 `json:"blocks"` // that changed, a short last one included
	Device int64 `json:"device"` // its size in bytes
}

// Merge brings the blocks that the COW file names from the snapshot to the image, in one
// transaction.
func Merge(ctx context.Context, snapshot, cow, image string, o Options) (rep Report, err error) {
	f, err := Open(cow)
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	from, err := block.Open(snapshot, block.Options{Direct: true})
	if err != nil {
		return rep, fmt.Errorf("snapshot: %w", err)
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	if err := f.precedes(snapshot, o); err != nil {
		return rep, err
	}
	if err := inuse.Changing(snapshot); err != nil {
		return rep, err
	}
	rep.Device = from.Size()
	changed, err := f.changed(rep.Device)
	if err != nil {
		return rep, fmt.Errorf("COW file: %s: %w", cow, err)
	}
	rep.Blocks = changed.Align(datto.BlockSize, 1<<62).Bytes() / datto.BlockSize
	if same, err := inuse.Reaches(image, from); err != nil || same {
		return rep, errors.Join(err, fmt.Errorf("%s: %w: it is the snapshot", image, target.ErrRefused))
	}
	job := merge.Job{From: from, Pieces: merge.InPlace(changed)}
	if o.DryRun {
		job.Progress = o.progress("comparing", changed.Bytes())
		rep.Report, err = compare(ctx, job, image, from, changed, o)
		return rep, err
	}
	job.Progress = o.progress("merging", changed.Bytes())
	rep.Report, err = commit(ctx, job, image, from, changed, o)
	return rep, err
}

func (f *File) changed(device int64) (extent.Set, error) {
	if _, err := f.Check(device); err != nil {
		return extent.Set{}, err
	}
	return f.Changed(device)
}

func compare(ctx context.Context, job merge.Job, image string, from *block.Device, changed extent.Set, o Options) (rep merge.Report, err error) {
	if err := merge.Judge(image, o.StateDir); err != nil {
		return rep, err
	}
	to, err := block.Open(image, block.Options{})
	if err != nil {
		return rep, fmt.Errorf("image: %w", err)
	}
	defer to.Close()
	if err := belongs(to, from, changed); err != nil {
		return rep, err
	}
	return job.Compare(ctx, to)
}

func commit(ctx context.Context, job merge.Job, image string, from *block.Device, changed extent.Set, o Options) (rep merge.Report, err error) {
	to, err := merge.Open(image, o.StateDir)
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if to.Recovered != "" && o.Note != nil {
		o.Note(to.Recovered)
	}
	if err := belongs(to.Device(), from, changed); err != nil {
		return rep, err
	}
	return to.Commit(ctx, job)
}

// precedes asks the driver whether the COW file is the one before the snapshot.
func (f *File) precedes(snapshot string, o Options) error {
	if err := f.Usable(); err != nil {
		return fmt.Errorf("COW file: %s: %w", f.device.Path(), err)
	}
	d, err := ask(snapshot, o)
	if err != nil {
		return err
	}
	if err := f.Precedes(d); err != nil {
		return fmt.Errorf("COW file: %s: %w", f.device.Path(), err)
	}
	return nil
}

// ask returns what the driver tells of a snapshot.
func ask(snapshot string, o Options) (d datto.DeviceInfo, err error) {
	if o.Known != nil && o.Info == "" {
		if known, err := o.Known(snapshot); known != nil || err != nil {
			return *cmp.Or(known, &d), err
		}
	}
	driver, minor, err := minorOf(snapshot)
	if err != nil {
		return d, err
	}
	path := o.Info
	if path == "" {
		if path = driverInfo[driver]; path == "" {
			return d, fmt.Errorf("snapshot: %s: %w: it is no device of dattobd or elastio-snap; give the driver's answer in a file", snapshot, ErrNoDriver)
		}
	}
	file, err := os.Open(path)
	if err != nil {
		return d, fmt.Errorf("%w: %w", ErrNoDriver, err)
	}
	defer file.Close()
	info, err := datto.ParseInfo(file)
	switch {
	case err != nil:
		return d, fmt.Errorf("%s: %w", path, err)
	case o.Minor >= 0:
		minor = o.Minor
	case minor < 0 && len(info.Devices) == 1:
		return info.Devices[0], nil
	case minor < 0:
		return d, fmt.Errorf("%s: %w which of its %d devices %s is: say its minor", path, ErrNoDriver, len(info.Devices), snapshot)
	}
	return info.Device(minor)
}

// minorOf tells from the name of a device which driver's it is, and its number there; -1 where
// it is none's.
func minorOf(path string) (driver string, minor int, err error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", -1, fmt.Errorf("snapshot: %w", err)
	}
	for driver := range driverInfo {
		if number, ok := strings.CutPrefix(real, "/dev/"+driver); ok {
			if n, err := strconv.ParseUint(number, 10, 8); err == nil {
				return driver, int(n), nil
			}
		}
	}
	return "", -1, nil
}

// samples is how many places that did not change are compared.
const samples = 256

// belongs refuses an image that is not one of the snapshot before: it has another size, or most
// of what did not change is not the same in the image and in the snapshot. Some of it may
// differ: the driver does not name the blocks of its own files.
func belongs(image, snapshot *block.Device, changed extent.Set) error {
	if image.Size() != snapshot.Size() {
		return fmt.Errorf("%s: %w: it has %d bytes, and the snapshot %d", image.Path(), ErrWrongImage, image.Size(), snapshot.Size())
	}
	rest := extent.NewSet(extent.Extent{Len: snapshot.Size()}).Subtract(changed)
	step := max(rest.Bytes()/samples/datto.BlockSize, 1) * datto.BlockSize
	a, b := block.AlignedBuffer(datto.BlockSize), block.AlignedBuffer(datto.BlockSize)
	var compared, same, skip int64
	for _, e := range rest.Extents() {
		for ; skip < e.Len; skip += step {
			n := min(datto.BlockSize, e.Len-skip)
			if err := errors.Join(block.ReadPadded(image, a[:n], e.Off+skip), block.ReadPadded(snapshot, b[:n], e.Off+skip)); err != nil {
				return err
			}
			if block.IsZero(a[:n]) && block.IsZero(b[:n]) {
				continue // as in any two disks
			}
			if compared++; string(a[:n]) == string(b[:n]) {
				same++
			}
		}
		skip -= e.Len
	}
	if same*2 < compared {
		return fmt.Errorf("%s: %w: of %d places that did not change %d are not the same in it", image.Path(), ErrWrongImage, compared, compared-same)
	}
	return nil
}

// Extract makes the image at path, which must not exist, of a snapshot: what its device holds now,
// with what the COW file has kept in its place. Neither must change meanwhile, nor have
// changed since the driver closed the file.
func Extract(ctx context.Context, cow, device, path string, o Options) (rep merge.Report, err error) {
	f, err := Open(cow)
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if f.Header().IndexOnly {
		return rep, fmt.Errorf("COW file: %s: %w", cow, datto.ErrNoData)
	}
	if err := inuse.Changing(device); err != nil {
		return rep, err
	}
	d, err := block.Open(device, block.Options{Direct: true})
	if err != nil {
		return rep, fmt.Errorf("device: %w", err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	sum, err := f.Check(d.Size())
	if err != nil {
		return rep, fmt.Errorf("COW file: %s: %w", cow, err)
	}
	job := merge.Job{
		From: f.device, Pieces: f.saved(d.Size()),
		Progress: o.progress("extracting", d.Size()+sum.Saved*datto.BlockSize),
	}
	return job.Extract(ctx, d, path)
}

// saved returns what the file has kept.
func (f *File) saved(device int64) iter.Seq2[merge.Piece, error] {
	return func(yield func(merge.Piece, error) bool) {
		for e, err := range f.Entries(device) {
			to := e.Block * datto.BlockSize
			if !yield(merge.Piece{From: e.Data, To: to, Len: min(datto.BlockSize, device-to)}, err) || err != nil {
				return
			}
		}
	}
}
