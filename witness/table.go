package witness

import (
	"encoding/binary"
	"errors"
	"fmt"

	"tidemark/format/gpt"
)

// A partition table of the kind "dos" is the first sector of a disk: from byte 446 on four entries
// of 16 bytes, 4 u8 type, 8 u32 first sector, 12 u32 sectors, little-endian; then 0x55 0xaa.
const (
	dosEntries = 446
	dosSign    = 510
	dosEntry   = 16
	dosSector  = 512
	dosTypeGPT = 0xee
)

// tableOf reads the partition table and returns the partitions in order of their entries. No table
// is a nil Volume; one that is damaged has no partitions. Logical partitions are not told apart:
// their extended one is one part.
func tableOf(p part) (*Volume, []part, error) {
	first, err := p.read(0, 4096)
	if errors.Is(err, errNone) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	t, err := gpt.Read(limited{p})
	if err == nil {
		v, parts, err := gptTable(p, t, first)
		return v, parts, err
	}
	if !errors.Is(err, gpt.ErrNone) {
		return nil, nil, err
	}
	if first[dosSign] != 0x55 || first[dosSign+1] != 0xaa || looksFAT(first) {
		return nil, nil, nil
	}
	v := &Volume{Len: dosSector, Kind: "dos"}
	v.add("sector 0", digest(first[:dosSector]))
	var parts []part
	for e := range 4 {
		entry := first[dosEntries+e*dosEntry:][:dosEntry]
		if entry[4] == dosTypeGPT {
			return v, nil, nil // of a GPT that is damaged
		}
		start, size := int64(binary.LittleEndian.Uint32(entry[8:]))*dosSector, int64(binary.LittleEndian.Uint32(entry[12:]))*dosSector
		if entry[4] != 0 && size > 0 && start > 0 && start+size <= p.size {
			parts = append(parts, part{p.r, start, size})
		}
	}
	return v, apart(parts), nil
}

func gptTable(p part, t *gpt.Table, first []byte) (*Volume, []part, error) {
	v := &Volume{Len: int64(2 * t.SectorSize), Kind: "gpt"}
	head, err := p.read(int64(t.SectorSize), dosSector)
	if err != nil {
		return nil, nil, err
	}
	v.add("sector 0", digest(first[:dosSector]))
	v.add("header", digest(head)) // which has a checksum of the entries
	if !protects(first) {
		return v, nil, nil // the kernel does not use such a table
	}
	var parts []part
	for _, q := range t.Partitions {
		if q.Size > 0 && q.Start > 0 && q.Start <= p.size-q.Size {
			parts = append(parts, part{p.r, q.Start, q.Size})
		}
	}
	return v, apart(parts), nil
}

// protects reports whether the first sector says that a GPT follows.
func protects(first []byte) bool {
	for e := range 4 {
		if first[dosEntries+e*dosEntry+4] == dosTypeGPT {
			return first[dosSign] == 0x55 && first[dosSign+1] == 0xaa
		}
	}
	return false
}

// apart returns the parts, none of them where two overlap: then none vouches for another.
func apart(parts []part) []part {
	const most = 256
	if len(parts) > most {
		return nil
	}
	for i, a := range parts {
		for _, b := range parts[:i] {
			if a.off < b.off+b.size && b.off < a.off+a.size {
				return nil
			}
		}
	}
	return parts
}

// limited ends where the part ends, as a file does.
type limited struct{ p part }

func (l limited) ReadAt(b []byte, off int64) (int, error) {
	got, err := l.p.read(off, len(b))
	if errors.Is(err, errNone) || err == nil && off+int64(len(b)) > l.p.size {
		return 0, fmt.Errorf("byte %d of %d: %w", off, l.p.size, gpt.ErrNone)
	}
	return copy(b, got), err
}
