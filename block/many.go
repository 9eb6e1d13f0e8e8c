package block

import (
	"fmt"
	"io"
)

// Read is one read of many: len(Buf) bytes at Off, as ReadAt would read them.
type Read struct {
	Buf []byte
	Off int64 // bytes
}

// ringDepth is how many reads of a device are under way at a time.
const ringDepth = 64

// ReadMany fills all buffers, in no order, and returns when all are filled or one
// could not be. Blocks that lie scattered over a device are asked for at once
// (io_uring), because one after the other leaves a disk idle. Where the kernel has
// no io_uring, or does not allow it, they are read one after the other.
func (d *Device) ReadMany(reads []Read) error {
	if !d.isDevice || len(reads) < 2 {
		return ReadEach(d, reads)
	}
	r := d.takeRing()
	if r == nil {
		return ReadEach(d, reads)
	}
	fd := int32(d.f.Fd())
	for at := 0; at < len(reads); at += ringDepth {
		part := reads[at:min(at+ringDepth, len(reads))]
		results, err := r.read(fd, part)
		if err != nil {
			// Nothing is known of the reads in it: the kernel may write to their
			// buffers yet, so that they must not be freed.
			r.close()
			d.abandon(reads)
			return fmt.Errorf("read %d extents of %s from offset %d: %w", len(part), d.Path(), part[0].Off, err)
		}
		// What did not come in full is read again alone: for the rest of it, or
		// for the error.
		for i, n := range results {
			if int(n) == len(part[i].Buf) {
				continue
			}
			if err := ReadEach(d, part[i:i+1]); err != nil {
				d.giveRing(r)
				return err
			}
		}
	}
	d.giveRing(r)
	return nil
}

// ReadEach fills the buffers one after the other.
func ReadEach(from io.ReaderAt, reads []Read) error {
	for _, r := range reads {
		if _, err := from.ReadAt(r.Buf, r.Off); err != nil {
			return err
		}
	}
	return nil
}

// takeRing returns a ring that nobody else uses, nil where there can be none.
func (d *Device) takeRing() *ring {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(d.rings); n > 0 {
		r := d.rings[n-1]
		d.rings = d.rings[:n-1]
		return r
	}
	if d.noRing {
		return nil
	}
	r, err := newRing(ringDepth)
	if err != nil { // of no harm: reads go one after the other then
		d.noRing = true
		return nil
	}
	return r
}

func (d *Device) giveRing(r *ring) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rings = append(d.rings, r)
}

func (d *Device) abandon(reads []Read) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.abandoned = append(d.abandoned, reads)
}

func (d *Device) closeRings() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.rings {
		r.close()
	}
	d.rings, d.noRing = nil, true
}
