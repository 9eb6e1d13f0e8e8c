package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/format/era"
	"tidemark/linux/mounts"
	"tidemark/transfer/inuse"
)

// metadataInput is open metadata, of an era device or of a thin pool. Reading it ends when the
// context does.
type metadataInput struct {
	dev *block.Device
	ctx context.Context
}

// openEra opens the metadata of an era device for reading; see openMetadata.
func openEra(ctx context.Context, path string, shared bool) (*metadataInput, error) {
	return openMetadata(ctx, "era", path, shared)
}

// openMetadata opens metadata for reading, past the page cache where it is a device,
// for the kernel writes past it. Unless it is shared, nobody may be using it.
func openMetadata(ctx context.Context, format, path string, shared bool) (*metadataInput, error) {
	dev, err := block.Open(path, block.Options{Direct: true, Exclusive: !shared})
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%s: %s: %w%s", format, path, errMetadataInUse, users(path))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", format, err)
	}
	if !dev.IsDevice() && !shared {
		if err := refuseActiveImage(path); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", format, err), dev.Close())
		}
	}
	return &metadataInput{dev, ctx}, nil
}

// users names who uses the device at path, as far as that can be told.
func users(path string) string {
	table, err := mounts.Read()
	if err != nil {
		return ""
	}
	use, err := table.UseOf(path)
	if err != nil || !use.InUse() {
		return ""
	}
	return " (" + use.String() + ")"
}

// refuseActiveImage refuses an image whose loop device is in use. One that is
// only attached does no harm.
func refuseActiveImage(path string) error {
	table, err := mounts.Read()
	if err != nil {
		return err
	}
	over, err := table.UseOf(path)
	if err != nil {
		return err
	}
	for _, loop := range over.Holders {
		use, err := table.UseOf(filepath.Join("/dev", loop))
		if err != nil {
			return fmt.Errorf("%s is %s: %w", loop, path, err)
		}
		if use.InUse() {
			return fmt.Errorf("%s: %w through %s (%s)", path, errMetadataInUse, loop, use)
		}
	}
	return nil
}

// ReadAt implements io.ReaderAt.
func (in *metadataInput) ReadAt(p []byte, off int64) (int, error) {
	if err := context.Cause(in.ctx); err != nil {
		return 0, err
	}
	return in.dev.ReadAt(p, off)
}

// Close closes the metadata.
func (in *metadataInput) Close() error { return in.dev.Close() }

// view opens the live state, or the held snapshot.
func (in *metadataInput) view(snapshot bool) (*era.View, error) {
	m, err := era.Open(in, in.dev.Size())
	if err != nil {
		return nil, err
	}
	if snapshot {
		return m.Snapshot()
	}
	return m.Live(), nil
}

// eraTarget is where metadata is restored to. Writing ends when the context
// does; the superblock is zero then.
type eraTarget struct {
	*block.Device
	ctx context.Context
}

// openEraTarget opens the output of restore and repair, which must be there: a
// device or a file that nobody uses and that is not the input. Unless overwrite
// is set, it must not hold anything that is known and is not dm-era metadata.
func openEraTarget(ctx context.Context, path string, input *os.File, overwrite bool) (*eraTarget, error) {
	switch same, err := sameFile(path, input); {
	case errors.Is(err, os.ErrNotExist):
		return nil, hinted{
			fmt.Errorf("era: output %s does not exist", path),
			`make a file with "truncate -s SIZE FILE", large enough for the metadata; "tidemark era plan" computes the size`,
		}
	case err != nil:
		return nil, fmt.Errorf("era: output: %w", err)
	case same:
		return nil, fmt.Errorf("era: output %s: %w: it is the input", path, errOutput)
	}
	if err := refuseUsedOutput(path, input.Name()); err != nil {
		return nil, err
	}
	if !overwrite {
		if err := refuseForeignOutput(path); err != nil {
			return nil, err
		}
	}
	dev, err := block.Open(path, block.Options{Write: true, Direct: true, Exclusive: true})
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("era: output: %s: %w", path, inuse.ErrInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("era: output: %w", err)
	}
	return &eraTarget{dev, ctx}, nil
}

func sameFile(path string, f *os.File) (bool, error) {
	a, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	b, err := f.Stat()
	return err == nil && os.SameFile(a, b), err
}

// refuseUsedOutput protects who uses the output, and an input that the output
// is made of.
func refuseUsedOutput(path, input string) error {
	if err := inuse.Held(path); err != nil {
		return fmt.Errorf("era: output: %w", err)
	}
	id, err := block.Identify(path)
	if errors.Is(err, block.ErrNotBlockDevice) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("era: output: %w", err)
	}
	table, err := mounts.Read()
	if err != nil {
		return fmt.Errorf("era: input: %w", err)
	}
	over, err := table.UseOf(input)
	if err != nil {
		return fmt.Errorf("era: input: %w", err)
	}
	if slices.Contains(over.Holders, id.Disk) {
		return fmt.Errorf("era: output %s: %w: it is made of the input", path, errOutput)
	}
	return nil
}

func refuseForeignOutput(path string) error {
	dev, err := block.Open(path, block.Options{})
	if err != nil {
		return fmt.Errorf("era: output: %w", err)
	}
	defer dev.Close()
	found, err := mounts.Probe(dev, dev.Size())
	if err != nil {
		return fmt.Errorf("era: output %s: %w", path, err)
	}
	if len(found) > 0 {
		return hinted{fmt.Errorf("era: output %s: %w: it holds %s", path, errOutput, found[0]), "give another output, or overwrite this one with --force"}
	}
	return nil
}

// WriteAt implements io.WriterAt.
func (t *eraTarget) WriteAt(p []byte, off int64) (int, error) {
	if err := context.Cause(t.ctx); err != nil {
		return 0, err
	}
	return t.Device.WriteAt(p, off)
}

// write runs restore twice: first into nothing, which proves that all of the
// input can be read and fits, and only then onto the target. What was written is
// then read back and checked.
func (t *eraTarget) write(restore func(w io.WriterAt, size int64) error) (era.Summary, error) {
	if err := restore(nowhere{}, t.Size()); err != nil {
		return era.Summary{}, err
	}
	if err := restore(t, t.Size()); err != nil {
		return era.Summary{}, err
	}
	var first *era.Fault
	sum, err := era.Check(t, t.Size(), func(f *era.Fault) {
		if first == nil {
			first = f
		}
	})
	if err == nil && first != nil {
		err = fmt.Errorf("era: output %s: read back: %w", t.Path(), first)
	}
	return sum, err
}

// nowhere forgets what is written to it.
type nowhere struct{}

// WriteAt implements io.WriterAt.
func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
