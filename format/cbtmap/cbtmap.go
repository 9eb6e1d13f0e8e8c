// Package cbtmap reads and writes the change-tracking maps of the blksnap driver: in which
// snapshot each block of a device was last written to.
//
// For most uses, call Check with what the driver tells of the map, and then Changes.
//
// # Format
//
// As in blksnap's cbt_map.c. A map is one byte for each block of the device, the last of which
// may be short: 0, the block was not written to since tracking began, or N, it was
// written to last when N was the number of the map. Each snapshot adds one to the number. A
// block has 64 KiB, twice as much as long as the device would have more than 2097152 of
// them, and 64 MiB at most (with the driver's own parameters). After 255 the map begins
// anew: all bytes zero, the number 1, and another generation.
//
// # What numbers can tell
//
// "Changed since snapshot N" are the blocks with a byte above N, in a map of the same
// generation. The snapshot that is taken when the map begins anew is told with the new
// generation, and still with 255, and its map is a stale one. So a number that is not below
// that of the map tells nothing, but where it is the very same below 255; then nothing
// changed.
package cbtmap

import (
	"errors"
	"fmt"
	"io"

	"tidemark/extent"
)

const (
	minBlock  = 64 << 10
	maxBlock  = 64 << 20
	maxBlocks = 2097152 // aimed at
	lastOne   = 255     // the highest number
)

// Position returns which of the maps that follow each other the n-th snapshot is in, from 0, and its
// number there. For a block that was written to last before the n-th snapshot it is the same.
func Position(n uint64) (cycle uint64, number int) {
	if n == 0 {
		return 0, 0
	}
	return (n - 1) / lastOne, int((n-1)%lastOne) + 1
}

var (
	// ErrUnknown says that what changed since a number cannot be told: everything may have.
	ErrUnknown = errors.New("what changed since then cannot be told")
	// ErrDamaged says that a map is not what the driver tells of it.
	ErrDamaged = errors.New("the map is damaged, or of another device")
)

// BlockSize is the size of a block, in bytes, that the driver chooses for a device of so many
// bytes.
func BlockSize(device int64) int64 {
	size := int64(minBlock)
	for size < maxBlock && blocksOf(device, size) > maxBlocks {
		size *= 2
	}
	return size
}

func blocksOf(device, size int64) int64 { return (device + size - 1) / size }

// Info is what the driver tells of a map (cbtinfo).
type Info struct {
	Device     int64  // bytes
	BlockSize  int64  // bytes; 0: as BlockSize says
	Number     int    // of the snapshot that the map is of; 0: not known
	Generation string // "" : not known
}

// blockSize returns the size of a block.
func (i Info) blockSize() int64 {
	if i.BlockSize > 0 {
		return i.BlockSize
	}
	return BlockSize(i.Device)
}

// Since returns nil when the map can tell what changed since the snapshot with a number and
// a generation, "" where that is not known. The error wraps ErrUnknown.
func (i Info) Since(number int, generation string) error {
	switch {
	case number < 0 || number > lastOne:
		return fmt.Errorf("cbtmap: %d is no number: they go from 0 to %d", number, lastOne)
	case generation != "" && i.Generation != "" && generation != i.Generation:
		return fmt.Errorf("cbtmap: %w: the map is of generation %s, and the snapshot of %s: it began anew", ErrUnknown, i.Generation, generation)
	case number == lastOne && (i.Number == 0 || i.Number == lastOne):
		return fmt.Errorf("cbtmap: %w: with the number %d a map may be about to begin anew", ErrUnknown, number)
	case i.Number > 0 && number > i.Number:
		return fmt.Errorf("cbtmap: %w: the map has the number %d, which is below %d: it began anew", ErrUnknown, i.Number, number)
	}
	return nil
}

// Changes reads a whole map and returns the bytes of the device that were written to since the
// snapshot with the given number; 0 is the time since tracking began. Since must have agreed.
// The error wraps ErrUnknown, ErrDamaged or io.ErrUnexpectedEOF, or is that of r.
func Changes(r io.Reader, i Info, since int) (extent.Set, error) {
	size := i.blockSize()
	if i.Device <= 0 || i.Device > 1<<60 || size <= 0 || size > 1<<40 { // so that no sum overflows
		return extent.Set{}, fmt.Errorf("cbtmap: a device of %d bytes in blocks of %d cannot be", i.Device, size)
	}
	var set extent.Builder
	blocks, highest := blocksOf(i.Device, size), 0
	buf := make([]byte, minBlock)
	for at := int64(0); at < blocks; at += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), blocks-at)]
		if n, err := io.ReadFull(r, p); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return extent.Set{}, fmt.Errorf("cbtmap: at byte %d, of %d for a device of %d bytes in blocks of %d: %w", at+int64(n), blocks, i.Device, size, err)
		}
		for j, b := range p {
			highest = max(highest, int(b))
			if i.Number > 0 && int(b) > i.Number {
				return extent.Set{}, fmt.Errorf("cbtmap: at byte %d: %w: it has the number %d, and the map %d", at+int64(j), ErrDamaged, b, i.Number)
			}
			if int(b) > since {
				set.Add(extent.Extent{Off: (at + int64(j)) * size, Len: size})
			}
		}
	}
	if n, _ := r.Read(buf[:1]); n > 0 {
		return extent.Set{}, fmt.Errorf("cbtmap: %w: it has more than the %d bytes of a device of %d bytes in blocks of %d", ErrDamaged, blocks, i.Device, size)
	}
	if since > highest && i.Number == 0 {
		return extent.Set{}, fmt.Errorf("cbtmap: %w: the map has no number above %d, and %d may be of another generation; say the number that the driver tells of the map", ErrUnknown, highest, since)
	}
	return set.Set().Clip(extent.Extent{Len: i.Device}), nil
}

// Map is a map that is being made.
type Map struct {
	info   Info
	blocks []byte
}

// New returns a map of a device of which nothing was written to.
func New(i Info) (*Map, error) {
	size := i.blockSize()
	if i.Number < 1 || i.Number > lastOne || i.Device <= 0 || i.Device > 1<<60 || size <= 0 || size > 1<<40 {
		return nil, fmt.Errorf("cbtmap: no map of a device of %d bytes in blocks of %d has the number %d", i.Device, size, i.Number)
	}
	return &Map{i, make([]byte, blocksOf(i.Device, size))}, nil
}

// Add gives each block that the set touches a number, from 0 to that of the map, unless it has a higher
// one.
func (m *Map) Add(number int, set extent.Set) error {
	if number < 0 || number > m.info.Number {
		return fmt.Errorf("cbtmap: a block of the number %d in a map of %d", number, m.info.Number)
	}
	size := m.info.blockSize()
	for _, e := range set.Align(size, m.info.Device).Extents() {
		for b := e.Off / size; b*size < min(e.End(), m.info.Device); b++ {
			m.blocks[b] = max(m.blocks[b], byte(number))
		}
	}
	return nil
}

// WriteTo writes the map.
func (m *Map) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(m.blocks)
	if err != nil {
		return int64(n), fmt.Errorf("cbtmap: %w", err)
	}
	return int64(n), nil
}
