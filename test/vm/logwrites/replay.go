package logwrites

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// atomic is what a disk writes wholly or not at all, in bytes: its physical block. The
// superblock of an ext4 has two sectors and a checksum, and counts on that.
const atomic = 4096

// Replay is the disk while a log is written to it, from its first entry on.
type Replay struct {
	// Disk is the content after the entries before Next.
	Disk []byte
	Next int
	log  *Log
}

// Replay starts with an empty disk of size bytes, which reads as zeros.
func (l *Log) Replay(size int64) *Replay {
	return &Replay{Disk: make([]byte, size), log: l}
}

// Advance writes entries until it has written one that makes all before it durable, a
// flush or a FUA write, or a mark, and returns that one. It reports false at the end
// of the log. The disk is then what is left at least by a power cut.
func (r *Replay) Advance() (Entry, bool, error) {
	for r.Next < len(r.log.Entries) {
		e := r.log.Entries[r.Next]
		if err := r.log.write(r.Disk, e, whole); err != nil {
			return e, false, err
		}
		r.Next++
		if e.Has(Flush | FUA | Mark) {
			return e, true, nil
		}
	}
	return Entry{}, false, nil
}

// Torn returns the disk as a power cut may leave it before the next flush, or in the
// middle of the next FUA write: with any part of what is being written. Writes of at
// most a physical block are there or not, larger ones may be torn at every sector.
func (r *Replay) Torn(rng *rand.Rand) ([]byte, error) {
	disk := slices.Clone(r.Disk)
	for _, e := range r.log.Entries[r.Next:] {
		if e.Has(Mark) || e.Has(Flush) {
			break
		}
		if err := r.log.write(disk, e, chance(rng, e.Len)); err != nil {
			return nil, err
		}
		if e.Has(FUA) {
			break
		}
	}
	return disk, nil
}

// whole keeps every sector of a write.
func whole(int64) bool { return true }

// chance decides which sectors of a write of length bytes are kept.
func chance(rng *rand.Rand, length int64) func(int64) bool {
	const keep, lose, cut = 0, 1, 2 // else each sector for itself
	fate := rng.IntN(4)
	if length <= atomic {
		fate %= 2
	}
	at := rng.Int64N(length/bioSector+1) * bioSector
	return func(off int64) bool {
		switch fate {
		case keep:
			return true
		case lose:
			return false
		case cut:
			return off < at
		}
		return rng.IntN(2) == 0
	}
}

// write brings those sectors of an entry to the disk that keep names by their offset
// in the entry's data.
func (l *Log) write(disk []byte, e Entry, keep func(off int64) bool) error {
	if e.Has(Mark) || e.Len == 0 {
		return nil
	}
	if e.Off > int64(len(disk))-e.Len {
		return fmt.Errorf("logwrites: %d bytes at %d of a disk of %d: %w", e.Len, e.Off, len(disk), ErrDamaged)
	}
	to := disk[e.Off : e.Off+e.Len]
	data := make([]byte, e.Len) // what was discarded reads as zeros
	if !e.Has(Discard) {
		if _, err := l.r.ReadAt(data, e.data); err != nil {
			return fmt.Errorf("logwrites: data at byte %d: %w", e.data, err)
		}
	}
	for at := int64(0); at < e.Len; at += bioSector {
		if keep(at) {
			copy(to[at:at+bioSector], data[at:])
		}
	}
	return nil
}
