// Package era reads, checks, dumps, restores and repairs the metadata of Linux's dm-era
// target, version 1, and computes how much of it a device needs.
//
// For most uses, call Open on the metadata device, take the held snapshot with
// Metadata.Snapshot (or Metadata.Live, when no kernel uses the metadata), and ask
// View.Changed for the blocks that were written since an era. Dump, Restore, Check and
// Repair do what era_dump, era_restore, era_check and era_repair do; NewPlan says how
// large the metadata device must be.
//
// The package owns the on-disk format and nothing else: it works on an io.ReaderAt or an
// io.WriterAt and opens no device. Only Stamp changes metadata in place; Restore and
// Repair write a new image. A reader refuses a block whose checksum, own address or type
// is wrong, a pointer that leaves the metadata, nodes that overlap or form a cycle, and
// sizes that do not fit. Each error names the byte offset. Memory stays within a few MiB
// for metadata of any size.
//
// One Metadata or View may be used by several goroutines at once when its io.ReaderAt
// allows that. A Sink is for one goroutine.
//
// # Format
//
// Everything is little endian, in blocks of 4096 bytes. A block begins with a
// checksum: CRC-32C over bytes 4 to 4095 without the final inversion, xored
// with a constant of the block's type. Most blocks repeat their own address
// (blocknr), so that a misplaced block is noticed.
//
// Superblock, block 0 and the block of the held metadata snapshot:
//
//	off  size
//	  0    4  checksum, constant 146538381
//	  4    4  flags: 0, or 1 when written by tools 1.x after a clean shutdown
//	  8    8  blocknr
//	 16   16  uuid; the kernel zeroes it at every commit
//	 32    8  magic 2126579579
//	 40    4  version, 1
//	 44  128  space map root: blocks, allocated blocks, index block,
//	          reference count tree (8 bytes each), 96 zero bytes
//	172    4  data block size in sectors, a multiple of 8
//	176    4  metadata block size in sectors, 8
//	180    4  data blocks of the device, below 2^31
//	184    4  current era
//	188    4  bits in the current writeset
//	192    8  root of the current writeset, 0 when it is archived
//	200    8  root of the writeset tree
//	208    8  root of the era array
//	216    8  block of the held metadata snapshot, 0 when none
//	256    8  "tidemark", when an identity follows: ours, which the kernel keeps
//	264   16  identity
//
// B-tree node: 32 bytes of header, max_entries keys of 8 bytes, strictly
// ascending, then the values. The value of an internal node is the block of a
// child, its key a lower bound of the keys below it:
//
//	 0    4  checksum, constant 121107
//	 4    4  flags: 1 internal, 2 leaf
//	 8    8  blocknr
//	16    4  entries in use
//	20    4  max_entries: the most that fit, rounded down to a multiple of 3
//	24    4  bytes of a value
//	28    4  padding
//
// Array: a B-tree whose keys 0, 1, 2… have no gap and whose values are array
// blocks, all full but the last. The era array holds one u32 for each data
// block, the newest era known to have written it; a bitset holds u64 words:
//
//	 0    4  checksum, constant 595846735
//	 4    4  max_entries, 4072 / value size: 1018 eras or 509 words
//	 8    4  entries in use
//	12    4  bytes of a value
//	16    8  blocknr
//	24       values
//
// Writeset tree: B-tree from era to {bits u32, bitset root u64} of each era that
// is archived but not yet digested, that is, merged into the era array.
//
// Space map: the index block (checksum, 4 padding, blocknr, then 255 entries of
// bitmap block u64, free entries u32, none free before u32; constant 160478)
// names the bitmaps (checksum, 4 unused, blocknr, then 16320 2-bit counts of
// references, high bit first; constant 240779). A count of 3 means: look in the
// reference count tree, a B-tree from block to u32.
package era

import (
	"encoding/binary"
	"hash/crc32"
)

// BlockSize is the size of a metadata block in bytes, fixed by the kernel
// (DM_ERA_METADATA_BLOCK_SIZE).
const BlockSize = 4096

// SectorSize is the unit of data block sizes in the format, in bytes.
const SectorSize = 512

// MaxMetadataBlocks is the number of blocks a space map can describe: 255
// bitmaps of 16320 entries. The kernel ignores the rest of a larger device.
const MaxMetadataBlocks = maxBitmaps * bitmapEntries

// Values from drivers/md/dm-era-target.c and drivers/md/persistent-data.
const (
	superMagic   = 2126579579 // SUPERBLOCK_MAGIC
	superVersion = 1          // MAX_ERA_VERSION
	metaSectors  = 8          // DM_ERA_METADATA_BLOCK_SIZE >> SECTOR_SHIFT
	maxNrBlocks  = 1 << 31    // valid_nr_blocks: exclusive
	flagClean    = 1          // thin-provisioning-tools 1.x only

	nodeHeader   = 32
	nodeInternal = 1 // INTERNAL_NODE
	nodeLeaf     = 2 // LEAF_NODE
	maxDepth     = 16

	arrayHeader   = 24
	eraWidth      = 4
	wordWidth     = 8
	writesetWidth = 12
	childWidth    = 8

	bitmapHeader  = 16
	bitmapEntries = (BlockSize - bitmapHeader) * 4
	maxBitmaps    = 255 // MAX_METADATA_BITMAPS
	indexEntry    = 16
)

// erasPerBlock and bitsPerBlock are what one array block holds. One block of a
// bitset covers exactly 32 blocks of the era array.
const (
	erasPerBlock  = (BlockSize - arrayHeader) / eraWidth
	wordsPerBlock = (BlockSize - arrayHeader) / wordWidth
	bitsPerBlock  = wordsPerBlock * 64
)

// Addr is the number of a metadata block.
type Addr uint64

// Offset returns where the block begins, in bytes.
func (a Addr) Offset() int64 { return int64(a) * BlockSize }

// Block is the number of a data block of the tracked device.
type Block uint32

// Era counts the periods between two checkpoints, snapshots or activations.
type Era uint32

// kind is the type of a metadata block.
type kind uint8

const (
	kindSuper kind = iota
	kindNode
	kindArray
	kindIndex
	kindBitmap
)

func (k kind) String() string {
	return [...]string{"superblock", "btree node", "array block", "space map index", "space map bitmap"}[k]
}

// xor is the constant that tells checksums of different types apart.
func (k kind) xor() uint32 {
	return [...]uint32{146538381, 121107, 595846735, 160478, 240779}[k]
}

// blocknr is where blocks of this type keep their own address.
func (k kind) blocknr() int {
	if k == kindArray {
		return 16
	}
	return 8
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(k kind, b []byte) uint32 {
	return ^crc32.Checksum(b[4:BlockSize], castagnoli) ^ k.xor()
}

// seal writes a block's own address and its checksum.
func seal(k kind, a Addr, b []byte) {
	le.PutUint64(b[k.blocknr():], uint64(a))
	le.PutUint32(b, checksum(k, b))
}

var le = binary.LittleEndian

// maxEntries is how many entries of a value size the kernel puts in a node
// (calc_max_entries): rounded down to a multiple of three.
func maxEntries(valueSize int) int {
	return (BlockSize - nodeHeader) / (8 + valueSize) / 3 * 3
}

// ceilDiv returns n/d, rounded up.
func ceilDiv(n, d uint64) uint64 {
	return (n + d - 1) / d
}
