// Package pdata reads, checks and writes what the kernel's persistent-data library stores for
// several targets of device-mapper, dm-era and dm-thin among them: B-trees, arrays and the
// space maps that count references.
//
// For most uses, make a Device, and walk a Tree or read an Array from the root that the
// target's superblock names. A SpaceMap compares stored counts of references with those that
// a checker has found. A Writer writes new metadata.
//
// The package owns what the formats have in common, and nothing of a superblock but the
// checksum. It trusts no block: checksum, own address, type and ranges are checked before
// use, and a tree that is damaged in any way, a cycle included, ends. Memory stays within a few
// blocks, but for what a caller collects. A Device may be used by several goroutines at once
// when its io.ReaderAt allows that; a Tree, an Array and a Writer are each for one.
//
// # Format
//
// As in drivers/md/persistent-data. Everything is little endian, in blocks of 4096 bytes. A
// block begins with a checksum: CRC-32C over bytes 4 to 4095 without the final inversion,
// xored with a constant of the block's type. Most blocks repeat their own address (blocknr),
// so that a misplaced block is noticed.
//
// B-tree node (dm-btree-internal.h): 32 bytes of header, max_entries keys of 8 bytes,
// strictly ascending, then the values. The value of an internal node is the block of a child,
// its key a lower bound of the keys below it:
//
//	 0    4  checksum, constant 121107
//	 4    4  flags: 1 internal, 2 leaf
//	 8    8  blocknr
//	16    4  entries in use
//	20    4  max_entries: the most that fit, rounded down to a multiple of 3
//	24    4  bytes of a value
//	28    4  padding
//
// Array (dm-array.c): a B-tree whose keys 0, 1, 2… have no gap and whose values are array
// blocks, all full but the last:
//
//	 0    4  checksum, constant 595846735
//	 4    4  max_entries, 4072 / value size
//	 8    4  entries in use
//	12    4  bytes of a value
//	16    8  blocknr
//	24       values
//
// Space map (dm-space-map-common.c): the root, 32 bytes that the superblock holds, has the
// numbers of blocks and of allocated blocks, the place of the index, and the root of the
// reference count tree, 8 bytes each. The index names the bitmaps, in entries of 16 bytes:
// bitmap block u64, free entries u32, none free before u32. That of the metadata's own
// blocks is one block (checksum, 4 padding, blocknr, then 255 entries; constant 160478);
// that of data blocks is a B-tree from the number of the bitmap to its entry. A bitmap
// (checksum, 4 unused, blocknr; constant 240779) has 16320 2-bit counts of references, high
// bit first. A count of 3 means: look in the reference count tree, a B-tree from block to u32.
package pdata

import (
	"encoding/binary"
	"hash/crc32"
)

const (
	// BlockSize is the size of a metadata block in bytes.
	BlockSize = 4096
	// MaxMetadataBlocks is the number of blocks that a space map of metadata can describe.
	MaxMetadataBlocks = maxBitmaps * BitmapEntries
	// BitmapEntries is how many blocks one bitmap of a space map counts.
	BitmapEntries = (BlockSize - bitmapHeader) * 4
	// ChildWidth is the size of a value that is the address of a block, in bytes.
	ChildWidth = 8

	nodeHeader   = 32
	nodeInternal = 1 // INTERNAL_NODE
	nodeLeaf     = 2 // LEAF_NODE
	maxDepth     = 16

	arrayHeader  = 24
	wordWidth    = 8
	bitmapHeader = 16
	maxBitmaps   = 255 // MAX_METADATA_BITMAPS
	indexEntry   = 16
	countWidth   = 4
)

// BitsPerBlock is how many bits a block of a bitset has.
const BitsPerBlock = (BlockSize - arrayHeader) / wordWidth * 64

// PerBlock is how many values of so many bytes an array block has.
func PerBlock(width int) int { return (BlockSize - arrayHeader) / width }

// Addr is the number of a metadata block.
type Addr uint64

// Offset returns where the block begins, in bytes.
func (a Addr) Offset() int64 { return int64(a) * BlockSize }

// Kind is the type of a metadata block.
type Kind uint8

// The types of blocks. Each target has a superblock of its own.
const (
	EraSuper Kind = iota
	ThinSuper
	Node
	ArrayBlock
	Index
	Bits
)

func (k Kind) String() string {
	return [...]string{"superblock", "superblock", "btree node", "array block", "space map index", "space map bitmap"}[k]
}

// xor is the constant that tells checksums of different types apart.
func (k Kind) xor() uint32 {
	return [...]uint32{146538381, 160774, 121107, 595846735, 160478, 240779}[k]
}

// blocknr is where blocks of this type keep their own address.
func (k Kind) blocknr() int {
	if k == ArrayBlock {
		return 16
	}
	return 8
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum returns what a block of a type should begin with.
func Checksum(k Kind, b []byte) uint32 {
	return ^crc32.Checksum(b[4:BlockSize], castagnoli) ^ k.xor()
}

// Seal writes a block's own address and its checksum.
func Seal(k Kind, a Addr, b []byte) {
	le.PutUint64(b[k.blocknr():], uint64(a))
	le.PutUint32(b, Checksum(k, b))
}

var le = binary.LittleEndian

// MaxEntries is how many entries of a value size the kernel puts in a node
// (calc_max_entries): rounded down to a multiple of three.
func MaxEntries(valueSize int) int {
	return (BlockSize - nodeHeader) / (8 + valueSize) / 3 * 3
}

// CeilDiv returns n/d, rounded up.
func CeilDiv(n, d uint64) uint64 { return (n + d - 1) / d }
