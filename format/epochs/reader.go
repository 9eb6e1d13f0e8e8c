package epochs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"tidemark/extent"
)

// Decode reads the file of size bytes that r holds. The error wraps
// ErrNotEpochs, ErrDamaged or ErrNewer, or is one of reading r. r must not
// change while Decode runs: the payload is read twice, first for its checksum.
func Decode(r io.ReaderAt, size int64) (File, error) {
	h, err := readHeader(r, size)
	if err != nil {
		return File{}, err
	}
	if err := h.verify(r, size); err != nil {
		return File{}, err
	}
	if faults := h.faults(); len(faults) > 0 {
		return File{}, faults[0]
	}
	set, err := h.decodePayload(r)
	if err != nil {
		return File{}, err
	}
	return File{
		Generation:  h.generation(),
		From:        h.from(),
		To:          h.to(),
		DiskSize:    int64(h.diskSize()),
		Granularity: int64(h.granularity()),
		Set:         set,
	}, nil
}

// readHeader reads the header and checks the magic and the length of the file.
func readHeader(r io.ReaderAt, size int64) (*header, error) {
	var h header
	n := min(max(size, 0), headerSize)
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, n), h[:n]); err != nil {
		return nil, fmt.Errorf("epochs: read header: %w", err)
	}
	known := min(n, int64(len(magic)))
	if n == 0 || h.magic()[:known] != magic[:known] {
		return nil, fmt.Errorf("epochs: magic at byte 0: %q, want %q: %w", h[:known], magic, ErrNotEpochs)
	}
	if size < headerSize {
		return nil, fmt.Errorf("epochs: header: file ends at byte %d of %d: %w", size, headerSize, ErrDamaged)
	}
	if h.storedLen() != uint64(size-headerSize) {
		return nil, h.fault(72, "payload of %d bytes in a file with room for %d", h.storedLen(), size-headerSize)
	}
	return &h, nil
}

// verify compares the checksum.
func (h *header) verify(r io.ReaderAt, size int64) error {
	sum := blake3.New()
	sum.Write(h.checked())
	if _, err := io.Copy(sum, io.NewSectionReader(r, headerSize, size-headerSize)); err != nil {
		return fmt.Errorf("epochs: read payload: %w", err)
	}
	if got := sum.Sum(nil); !bytes.Equal(got, h.checksum()) {
		return h.fault(checksumOff, "checksum %x…, want %x…", got[:4], h.checksum()[:4])
	}
	return nil
}

// fault returns an error about the header field at byte off.
func (h *header) fault(off int, format string, args ...any) error {
	return fmt.Errorf("epochs: header at byte %d: %s: %w", off, fmt.Sprintf(format, args...), ErrDamaged)
}

// faults returns everything that is wrong with a header of the right magic and
// length, version and flags first. It looks no further when the file is newer.
func (h *header) faults() []error {
	if h.version() > version {
		return []error{fmt.Errorf("epochs: version %d, this program reads up to %d: %w", h.version(), version, ErrNewer)}
	}
	if h.version() == 0 {
		return []error{h.fault(8, "version 0")}
	}
	if h.flags() != 0 {
		return []error{fmt.Errorf("epochs: flags %#x at byte 12 are unknown: %w", h.flags(), ErrNewer)}
	}
	var faults []error
	if h.to() <= h.from() {
		faults = append(faults, h.fault(24, "epochs %d to %d hold none", h.from(), h.to()))
	}
	sizeOK := h.diskSize() > 0 && h.diskSize() <= math.MaxInt64
	if !sizeOK {
		faults = append(faults, h.fault(40, "disk of %d bytes", h.diskSize()))
	}
	granularityOK := validGranularity(h.granularity())
	if !granularityOK {
		faults = append(faults, h.fault(48, "granularity of %d bytes", h.granularity()))
	}
	if h.count() > MaxExtents {
		return append(faults, h.fault(56, "%d extents, at most %d", h.count(), MaxExtents))
	}
	if sizeOK && granularityOK {
		if most := h.maxCount(); h.count() > most {
			faults = append(faults, h.fault(56, "%d extents where %d fit", h.count(), most))
		}
	}
	if raw := h.rawLen(); raw < minVarints*h.count() || raw > maxVarints*h.count() {
		faults = append(faults, h.fault(64, "%d bytes for %d extents", raw, h.count()))
	}
	if (h.count() == 0) != (h.storedLen() == 0) {
		faults = append(faults, h.fault(72, "%d bytes hold %d extents", h.storedLen(), h.count()))
	}
	return faults
}

// maxCount returns the number of extents that fit the disk, a gap between each.
func (h *header) maxCount() uint64 {
	return uint64(blockCount(int64(h.diskSize()), int64(h.granularity()))+1) / 2
}

func validGranularity(g uint64) bool {
	return g >= MinGranularity && g <= MaxGranularity && g&(g-1) == 0
}

// decodePayload reads the extents. The header must have no faults.
func (h *header) decodePayload(r io.ReaderAt) (extent.Set, error) {
	if h.count() == 0 {
		return extent.Set{}, nil
	}
	in := &inputReader{in: io.NewSectionReader(r, headerSize, int64(h.storedLen()))}
	z, err := zstd.NewReader(in,
		zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(windowSize))
	if err != nil {
		return extent.Set{}, fmt.Errorf("epochs: payload: %w: %w", err, ErrDamaged)
	}
	defer z.Close()
	raw := &payloadReader{in: bufio.NewReaderSize(io.LimitReader(z, int64(h.rawLen())+1), 64<<10)}
	set, err := h.readExtents(raw)
	if in.err != nil {
		return extent.Set{}, fmt.Errorf("epochs: read payload: %w", in.err)
	}
	if err != nil {
		return extent.Set{}, fmt.Errorf("epochs: payload byte %d before compression: %w: %w", raw.off, err, ErrDamaged)
	}
	return set, nil
}

// readExtents reads count extents that must take exactly rawLen bytes.
func (h *header) readExtents(raw *payloadReader) (extent.Set, error) {
	size, granularity := int64(h.diskSize()), int64(h.granularity())
	blocks := uint64(blockCount(size, granularity))
	var b extent.Builder
	var end uint64
	for i := range h.count() {
		gap, err := raw.uvarint()
		if err != nil {
			return extent.Set{}, err
		}
		length, err := raw.uvarint()
		if err != nil {
			return extent.Set{}, err
		}
		if (gap == 0 && i > 0) || length == 0 || gap > blocks-end || length > blocks-end-gap {
			return extent.Set{}, fmt.Errorf("extent %d: gap %d and length %d after block %d of %d", i, gap, length, end, blocks)
		}
		off := int64(end+gap) * granularity
		end += gap + length
		last := size
		if end < blocks {
			last = int64(end) * granularity
		}
		b.Add(extent.Extent{Off: off, Len: last - off})
	}
	if _, err := raw.in.ReadByte(); err == nil {
		return extent.Set{}, errors.New("more follows the last extent")
	} else if !errors.Is(err, io.EOF) {
		return extent.Set{}, err
	}
	if raw.off != h.rawLen() {
		return extent.Set{}, fmt.Errorf("the header says %d bytes", h.rawLen())
	}
	return b.Set(), nil
}

// inputReader remembers that reading failed, which is no fault of the bytes.
type inputReader struct {
	in  io.Reader
	err error
}

func (r *inputReader) Read(p []byte) (int, error) {
	n, err := r.in.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// payloadReader reads varints and counts their bytes.
type payloadReader struct {
	in  *bufio.Reader
	off uint64
}

// uvarint reads a number below 2^63 in its shortest form.
func (p *payloadReader) uvarint() (uint64, error) {
	var v uint64
	for shift := 0; shift < 63; shift += 7 {
		c, err := p.in.ReadByte()
		if errors.Is(err, io.EOF) {
			return 0, io.ErrUnexpectedEOF
		}
		if err != nil {
			return 0, err
		}
		p.off++
		v |= uint64(c&0x7f) << shift
		if c&0x80 == 0 {
			if c == 0 && shift > 0 {
				return 0, errors.New("number in a longer form than needed")
			}
			return v, nil
		}
	}
	return 0, errors.New("number of more than 63 bits")
}
