// Package volatile is a disk that forgets: an image file served over NBD which loses
// what was written since the last flush when its power is cut, as a disk with a
// write cache may.
//
// Writes go to the file at once, so reads and later boots need nothing special. The
// content that the disk last promised to keep (by a flush, or a write with FUA) is
// remembered for every sector written since. A power cut then decides sector by
// sector, from a seed, whether the new content or the promised one stays: whole
// blocks vanish, later writes survive earlier ones, and blocks are torn at sector
// boundaries. Of several unflushed writes to one sector only the last can survive;
// that is the one thing a real cache may do and this does not.
//
// A Disk may be used from several goroutines; requests are served one at a time.
package volatile

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
)

// blockSize is the unit in which the promised content is remembered.
const blockSize = 4096

// ErrPowerCut is what a request meets when the power is off.
var ErrPowerCut = errors.New("power is off")

// Disk is an image file with a write cache that can be lost.
type Disk struct {
	file   *os.File
	size   int64 // bytes
	sector int   // bytes; the unit that is never torn

	mu       sync.Mutex
	promised map[int64][]byte // block number → content at the last flush
	writes   int              // write-like requests so far
	flushes  int
	cutAt    int // the power goes with this write; 0: never
	onCut    func()
	off      bool
}

// Open serves the image file at path; it is as long as the disk, a multiple of sector
// bytes (0 stands for 512).
func Open(path string, sector int) (*Disk, error) {
	if sector == 0 {
		sector = 512
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("volatile disk: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("volatile disk: %w", err), file.Close())
	}
	if info.Size()%int64(sector) != 0 {
		return nil, errors.Join(fmt.Errorf("volatile disk: %s: %d bytes are no whole sectors", path, info.Size()), file.Close())
	}
	return &Disk{file: file, size: info.Size(), sector: sector, promised: map[int64][]byte{}}, nil
}

// Close closes the file. What was not flushed is kept.
func (d *Disk) Close() error {
	return d.file.Close()
}

// Size is the disk's size in bytes.
func (d *Disk) Size() int64 {
	return d.size
}

// Count returns how many write-like requests and how many flushes were served.
func (d *Disk) Count() (writes, flushes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.writes, d.flushes
}

// CutAt turns the power off when write number n, counted from the opening of the
// disk at 1, arrives: neither it nor any later request is answered. It then calls cut once,
// which must not wait for the disk.
func (d *Disk) CutAt(n int, cut func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutAt, d.onCut = n, cut
}

// PowerCut decides, from the seed, which unflushed sectors are lost, and writes their
// promised content back. The disk serves no more. It returns how many bytes were lost.
func (d *Disk) PowerCut(seed uint64) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off = true
	rng := rand.New(rand.NewPCG(seed, 0))
	var lost int64
	for _, block := range slices.Sorted(maps.Keys(d.promised)) {
		n, err := d.forget(rng, block)
		if err != nil {
			return lost, err
		}
		lost += n
	}
	d.promised = map[int64][]byte{}
	return lost, nil
}

// forget keeps one block's new content, or loses it, or mixes both by sectors.
func (d *Disk) forget(rng *rand.Rand, block int64) (int64, error) {
	old := d.promised[block]
	const keep, lose = 0, 1 // else torn
	fate := rng.IntN(3)
	if fate == keep {
		return 0, nil
	}
	var lost int64
	for at := 0; at < len(old); at += d.sector {
		if fate != lose && rng.IntN(2) == 0 {
			continue
		}
		part := old[at:min(at+d.sector, len(old))]
		if _, err := d.file.WriteAt(part, block*blockSize+int64(at)); err != nil {
			return lost, fmt.Errorf("volatile disk: byte %d: %w", block*blockSize+int64(at), err)
		}
		lost += int64(len(part))
	}
	return lost, nil
}

// read fills p from off.
func (d *Disk) read(p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return ErrPowerCut
	}
	_, err := d.file.ReadAt(p, off)
	return err
}

// write stores p at off; with fua it is promised as well.
func (d *Disk) write(p []byte, off int64, fua bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.countWrite(); err != nil {
		return err
	}
	if err := d.remember(p, off, fua); err != nil {
		return err
	}
	_, err := d.file.WriteAt(p, off)
	return err
}

// flush promises all that was written.
func (d *Disk) flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return ErrPowerCut
	}
	d.flushes++
	clear(d.promised)
	return nil
}

func (d *Disk) countWrite() error {
	if d.off {
		return ErrPowerCut
	}
	d.writes++
	if d.writes != d.cutAt {
		return nil
	}
	d.off = true
	d.onCut()
	return ErrPowerCut
}

// remember keeps the promised content of the blocks about to be overwritten by p at
// off. With fua p itself becomes the promised content.
func (d *Disk) remember(p []byte, off int64, fua bool) error {
	end := off + int64(len(p))
	for block := off / blockSize; block*blockSize < end; block++ {
		start := block * blockSize
		old, ok := d.promised[block]
		if fua {
			if ok {
				overlay(old, start, p, off)
			}
			continue
		}
		if ok {
			continue
		}
		old = make([]byte, min(blockSize, d.size-start))
		if _, err := d.file.ReadAt(old, start); err != nil {
			return err
		}
		d.promised[block] = old
	}
	return nil
}

// overlay copies the part of src, which lies at srcOff, that falls into dst, at dstOff.
func overlay(dst []byte, dstOff int64, src []byte, srcOff int64) {
	if srcOff < dstOff {
		src = src[min(dstOff-srcOff, int64(len(src))):]
		srcOff = dstOff
	}
	if at := srcOff - dstOff; at < int64(len(dst)) {
		copy(dst[at:], src)
	}
}
