package epochs

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"tidemark/extent"
)

// Encode writes f to w. It refuses, before it writes a byte, a File that the
// table of the package does not allow. The compressed payload is held in memory.
//
// Encode writes and nothing more: a caller who needs the file to outlive a power
// cut syncs it, renames it into place and syncs the folder.
func Encode(w io.Writer, f File) error {
	h, err := f.header()
	if err != nil {
		return fmt.Errorf("epochs: encode: %w", err)
	}
	payload, rawLen, err := encodePayload(f.Set, f.Granularity)
	if err != nil {
		return fmt.Errorf("epochs: encode: payload: %w", err)
	}
	h.setU64(64, rawLen)
	h.setU64(72, uint64(len(payload)))
	h.seal(payload)
	for _, part := range [][]byte{h[:], payload} {
		if _, err := w.Write(part); err != nil {
			return fmt.Errorf("epochs: encode: %w", err)
		}
	}
	return nil
}

// header returns the header of f but for the lengths of the payload and the
// checksum, or what is wrong with f.
func (f File) header() (*header, error) {
	if err := f.validate(); err != nil {
		return nil, err
	}
	var h header
	copy(h[:], magic)
	h.setU32(8, version)
	if _, err := hex.Decode(h[16:24], []byte(f.Generation)); err != nil {
		return nil, fmt.Errorf("generation %q: %w", f.Generation, err)
	}
	if h.generation() != f.Generation {
		return nil, fmt.Errorf("generation %q is not in lower case", f.Generation)
	}
	h.setU64(24, f.From)
	h.setU64(32, f.To)
	h.setU64(40, uint64(f.DiskSize))
	h.setU64(48, uint64(f.Granularity))
	h.setU64(56, uint64(f.Set.Len()))
	return &h, nil
}

func (f File) validate() error {
	switch {
	case len(f.Generation) != generationLen:
		return fmt.Errorf("generation %q is not %d hex digits", f.Generation, generationLen)
	case f.To <= f.From:
		return fmt.Errorf("epochs %d to %d hold none", f.From, f.To)
	case f.DiskSize <= 0:
		return fmt.Errorf("disk of %d bytes", f.DiskSize)
	case f.Granularity < 0 || !validGranularity(uint64(f.Granularity)):
		return fmt.Errorf("granularity of %d bytes", f.Granularity)
	case f.Set.Len() > MaxExtents:
		return fmt.Errorf("%d extents, at most %d", f.Set.Len(), MaxExtents)
	}
	for _, e := range f.Set.Extents() {
		if e.Off%f.Granularity != 0 || e.End() > f.DiskSize ||
			(e.End()%f.Granularity != 0 && e.End() != f.DiskSize) {
			return fmt.Errorf("extent %v is not made of %d-byte blocks of a disk of %d bytes", e, f.Granularity, f.DiskSize)
		}
	}
	return nil
}

// seal sets the checksum; payload is what will be stored behind the header.
func (h *header) seal(payload []byte) {
	sum := blake3.New()
	sum.Write(h.checked())
	sum.Write(payload)
	sum.Sum(h[:checksumOff])
}

// encodePayload returns the payload as stored and its length before
// compression.
func encodePayload(set extent.Set, granularity int64) (stored []byte, rawLen uint64, err error) {
	if set.Empty() {
		return nil, 0, nil
	}
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(windowSize),
		zstd.WithEncoderCRC(false), zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return nil, 0, err
	}
	var end int64
	chunk := make([]byte, 0, 64<<10)
	for _, e := range set.Extents() {
		off, next := e.Off/granularity, (e.End()-1)/granularity+1
		chunk = binary.AppendUvarint(chunk, uint64(off-end))
		chunk = binary.AppendUvarint(chunk, uint64(next-off))
		end = next
		if len(chunk) > cap(chunk)-maxVarints {
			rawLen += uint64(len(chunk))
			if _, err := z.Write(chunk); err != nil {
				return nil, 0, err
			}
			chunk = chunk[:0]
		}
	}
	rawLen += uint64(len(chunk))
	if _, err := z.Write(chunk); err != nil {
		return nil, 0, err
	}
	if err := z.Close(); err != nil {
		return nil, 0, err
	}
	return out.Bytes(), rawLen, nil
}
