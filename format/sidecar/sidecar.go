// Package sidecar is the format of the files that lie beside a mirror: its
// state, the checksums of its blocks, and the redo journal of one update.
//
// The package reads and writes bytes; it opens no file and knows no device. It
// refuses what is damaged, what belongs to something else and what a newer
// tidemark wrote, each with an error of its own, and never allocates by a number
// it has not checked. Nothing in it is safe for concurrent use, except that
// Sums may be used by several goroutines on blocks that do not overlap.
//
// All integers are little endian. A checksum is the first 16 bytes of the BLAKE3
// hash. The sum of a block of zeros is 16 zero bytes, so that the sums of unused
// space are a hole in the sums file.
//
// # State
//
// One line of JSON (see State), and a second one that holds "blake3:" and the
// checksum of the first line, its newline included, in hexadecimal.
//
// # Sums
//
//	offset  size  meaning
//	0       8     magic "TMSUMS\r\n"
//	8       4     version, 1
//	12      4     block size in bytes, a power of two of at least 4096
//	16      16    id of the mirror
//	32      16    checksum of bytes 0 to 31
//	48      4048  zeros
//	4096    16×n  the checksum of each block; the last block of a mirror may be
//	              short
//
// # Journal
//
//	offset  size  meaning
//	0       8     magic "TMJRNL\r\n"
//	8       4     version, 1
//	12      4     block size in bytes
//	16      16    id of the mirror
//	32      8     number of the update, one more than that of the state it changes
//	40      8     size of the target after the update, bytes
//	48      16    checksum of bytes 0 to 47
//	64            records, one after the other
//
// A record:
//
//	offset  size  meaning
//	0       4     kind: "DATA", "ZERO" or "DONE"
//	4       4     number of checksums that follow, 0 unless DATA
//	8       8     DATA, ZERO: offset in the target, a multiple of the block size.
//	              DONE: number of records before this one
//	16      8     length in bytes of the data (at most MaxData), of the zeros, or
//	              of the state (at most MaxState)
//	24      16    checksum of bytes 0 to 23 and of the checksums
//	40      16×n  the checksum of each block of data
//	        len   the data, or the state
//
// A length is a multiple of the block size, except where the record ends at the
// end of the target. Where records overlap the later one holds. DONE is the last
// record: its state is what the target becomes, and its checksum covers, besides
// its own bytes, the chain of the checksums of all records, so that a record
// that is missing or from another journal is noticed.
package sidecar

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/zeebo/blake3"
)

var (
	// ErrNotOurs says that the bytes are not of this format at all.
	ErrNotOurs = errors.New("not a tidemark file of this kind")
	// ErrDamaged says that the bytes were of this format once.
	ErrDamaged = errors.New("damaged")
	// ErrNewer says that a newer tidemark wrote the bytes.
	ErrNewer = errors.New("written by a newer tidemark")
	// ErrIncomplete says that a journal ends before its last record: the update
	// was never committed.
	ErrIncomplete = errors.New("journal was not committed")
)

const version = 1

// SumSize is the length of a checksum in bytes.
const SumSize = 16

// MinBlock and MaxBlock bound the block size in bytes.
const (
	MinBlock = 4096
	MaxBlock = 16 << 20
)

// Sum is the checksum of one block: the first 16 bytes of its BLAKE3 hash, or
// zero for a block of zeros.
type Sum [SumSize]byte

// SumOf returns the checksum of a block that is not all zeros. The caller has
// looked for zeros already, because it treats them differently anyway.
func SumOf(block []byte) Sum {
	full := blake3.Sum256(block)
	return Sum(full[:SumSize])
}

// ID names one mirror, so that a journal or the sums of another are not taken
// for its own.
type ID [16]byte

// checksum is the one over headers: unlike SumOf it gives zeros no special place.
func checksum(parts ...[]byte) Sum {
	h := blake3.New()
	for _, p := range parts {
		h.Write(p)
	}
	var s Sum
	h.Digest().Read(s[:])
	return s
}

func checkBlockSize(n uint32) error {
	if n < MinBlock || n > MaxBlock || bits.OnesCount32(n) != 1 {
		return fmt.Errorf("block size %d: want a power of two from %d to %d: %w", n, MinBlock, MaxBlock, ErrDamaged)
	}
	return nil
}

// Blocks returns how many blocks of blockSize bytes a target of size bytes has;
// the last one may be short.
func Blocks(size, blockSize int64) int64 {
	n := size / blockSize
	if size%blockSize != 0 {
		n++
	}
	return n
}
