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
// Everything is little endian, in blocks of 4096 bytes. B-trees, arrays, space maps and the
// checksum that begins each block are those of package pdata.
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
// The era array holds one u32 for each data block, the newest era known to have written
// it; a bitset is an array of u64 words.
//
// Writeset tree: B-tree from era to {bits u32, bitset root u64} of each era that
// is archived but not yet digested, that is, merged into the era array.
package era

import (
	"encoding/binary"

	"tidemark/format/pdata"
)

// BlockSize is the size of a metadata block in bytes, fixed by the kernel
// (DM_ERA_METADATA_BLOCK_SIZE).
const BlockSize = pdata.BlockSize

// SectorSize is the unit of data block sizes in the format, in bytes.
const SectorSize = 512

// MaxMetadataBlocks is the number of blocks a space map can describe: 255
// bitmaps of 16320 entries. The kernel ignores the rest of a larger device.
const MaxMetadataBlocks = pdata.MaxMetadataBlocks

// Values from drivers/md/dm-era-target.c.
const (
	superMagic   = 2126579579 // SUPERBLOCK_MAGIC
	superVersion = 1          // MAX_ERA_VERSION
	metaSectors  = 8          // DM_ERA_METADATA_BLOCK_SIZE >> SECTOR_SHIFT
	maxNrBlocks  = 1 << 31    // valid_nr_blocks: exclusive
	flagClean    = 1          // thin-provisioning-tools 1.x only

	eraWidth      = 4
	wordWidth     = 8
	writesetWidth = 12
	spaceMapRoot  = 44 // where the superblock has it
)

// erasPerBlock, wordsPerBlock and bitsPerBlock are what one array block holds. One block of a
// bitset covers exactly 32 blocks of the era array.
const (
	erasPerBlock  = (BlockSize - 24) / eraWidth
	bitsPerBlock  = pdata.BitsPerBlock
	wordsPerBlock = bitsPerBlock / 64
)

// Addr is the number of a metadata block.
type Addr = pdata.Addr

// Block is the number of a data block of the tracked device.
type Block uint32

// Era counts the periods between two checkpoints, snapshots or activations.
type Era uint32

var le = binary.LittleEndian
