package snapshot

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"

	"tidemark/block"
)

// markAt is where the header of a persistent store has our mark. The kernel reads the 16 bytes before
// it only, and writes the header anew only when it gives the snapshot up (drivers/md/dm-snap-persistent.c,
// struct disk_header, read_header and write_header).
const markAt, markSize = 16, 16

// errOther says that a store is not the one that a record tells of, which may be an older one, from a
// backup of /etc.
var errOther = errors.New("the store that is there is another snapshot's")

// mark marks a store whose header the kernel has made.
func (s *Snapshot) mark(v *Volume) error {
	var mark [markSize]byte
	_, _ = rand.Read(mark[:]) // it never fails
	v.Store.Mark = hex.EncodeToString(mark[:])
	d, err := block.Open("/dev/mapper/"+s.cow(v), block.Options{Write: true, Direct: true})
	if err != nil {
		return err
	}
	header := block.AlignedBuffer(int(s.Chunk))
	if _, err = d.ReadAt(header, 0); err == nil {
		copy(header[markAt:], mark[:])
		_, err = d.WriteAt(header, 0)
	}
	return errors.Join(err, d.Sync(), d.Close())
}

// marked returns errOther unless a store has its mark.
func (s Store) marked(r io.ReaderAt) error {
	var mark [markSize]byte
	if _, err := r.ReadAt(mark[:], markAt); err != nil {
		return err
	}
	if hex.EncodeToString(mark[:]) != s.Mark {
		return errOther
	}
	return nil
}
