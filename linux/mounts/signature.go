package mounts

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"tidemark/block"
)

// Kind is the sort of owner that left a signature.
type Kind string

// The kinds of signature.
const (
	KindFilesystem Kind = "filesystem"
	KindTable      Kind = "partition table"
	KindMember     Kind = "volume member" // of a RAID, a volume group, a cache, an encrypted volume
	KindSwap       Kind = "area"          // for swap
)

// Signature is the magic number by which an owner marks a device as its own.
type Signature struct {
	Kind Kind
	Name string // as blkid calls it: "LVM2_member"; "ext" is any of ext2, ext3, ext4
	Off  int64  // bytes from the start of the device

	version string // "2", "3" or "4" of ext
}

// String returns "xfs filesystem", "ext4 filesystem", "swap area".
func (s Signature) String() string { return s.Name + s.version + " " + string(s.Kind) }

// Probe looks for the signatures of filesystems, volume managers and partition
// tables on a device of size bytes. It serves to refuse a target, not to tell versions
// apart, and may find a signature too many. Reads from r are whole 4 KiB blocks at
// multiples of 4 KiB, cut at size, into a buffer that is fit for direct I/O.
func Probe(r io.ReaderAt, size int64) ([]Signature, error) {
	p := &prober{r: r, size: size, buf: block.AlignedBuffer(probeBlock)}
	var found []Signature
	for _, m := range magics {
		ok, err := p.matches(m)
		if err != nil {
			return nil, err
		}
		if ok && !slices.ContainsFunc(found, func(s Signature) bool { return s.Name == m.name }) {
			s := Signature{Kind: m.kind, Name: m.name, Off: m.at(size)}
			if m.name == "ext" {
				if s.version, err = p.extVersion(); err != nil {
					return nil, err
				}
			}
			found = append(found, s)
		}
	}
	return found, nil
}

// A magic is one place where a signature may stand.
type magic struct {
	kind  Kind
	name  string
	off   int64 // from the start, or from the end when negative
	bytes string
	check func(p *prober, at int64) (bool, error) // nil: the bytes are enough
}

func (m magic) at(size int64) int64 {
	if m.off < 0 {
		return size + m.off
	}
	return m.off
}

const probeBlock = 4096

// A prober reads the device for the probes, one block at a time.
type prober struct {
	r     io.ReaderAt
	size  int64
	block int64 // the one in buf, as index + 1; 0 is none
	have  int
	buf   []byte // fit for direct I/O
}

func (p *prober) matches(m magic) (bool, error) {
	at := m.at(p.size)
	got, ok, err := p.bytes(at, len(m.bytes))
	if err != nil || !ok || !bytes.Equal(got, []byte(m.bytes)) {
		return false, err
	}
	if m.check == nil {
		return true, nil
	}
	return m.check(p, at)
}

// bytes returns n bytes at off, valid until the next call; false when they are
// not all on the device. No entry of the table straddles a block.
func (p *prober) bytes(off int64, n int) ([]byte, bool, error) {
	if off < 0 || off > p.size-int64(n) {
		return nil, false, nil
	}
	if err := p.load(off / probeBlock); err != nil {
		return nil, false, err
	}
	in := int(off % probeBlock)
	if in+n > p.have {
		return nil, false, nil
	}
	return p.buf[in : in+n], true, nil
}

func (p *prober) load(index int64) error {
	if p.block == index+1 {
		return nil
	}
	p.block = 0
	want := min(probeBlock, p.size-index*probeBlock)
	n, err := p.r.ReadAt(p.buf[:want], index*probeBlock)
	if err != nil && !(errors.Is(err, io.EOF) && int64(n) == want) {
		return fmt.Errorf("probe: at byte %d: %w", index*probeBlock, err)
	}
	p.have, p.block = n, index+1
	return nil
}

// u32 returns a little-endian number, 0 for an offset past the device.
func (p *prober) u32(off int64) (uint32, error) {
	b, ok, err := p.bytes(off, 4)
	if err != nil || !ok {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}
