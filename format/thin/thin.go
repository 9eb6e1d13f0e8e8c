// Package thin reads and checks the metadata of Linux's dm-thin target: which blocks of a
// pool's data device belong to which thin volume, and what differs between two volumes.
//
// For most uses, call Open on the metadata device, take the held snapshot with
// Metadata.Snapshot (or Metadata.Live, when no kernel uses the metadata), and ask the View for
// its Devices, the Mappings of one, or the Delta of two. Check looks at all of it.
//
// The package owns the on-disk format and nothing else: it works on an io.ReaderAt and opens
// no device. B-trees and space maps are those of package pdata. A reader refuses what is
// damaged, and names the byte; a tree with a cycle ends. Memory stays within a few blocks, but
// for Check, which takes a byte for each metadata block and five for each data block in use.
// One Metadata or View may be used by several goroutines at once when its io.ReaderAt allows
// that.
//
// # Format
//
// As in drivers/md/dm-thin-metadata.c. Superblock, block 0 and the block of the held metadata
// snapshot (with space maps of zeros there):
//
//	off  size
//	  0    4  checksum, constant 160774
//	  4    4  flags: 1, the metadata needs a check
//	  8    8  blocknr
//	 16   16  uuid
//	 32    8  magic 27022010
//	 40    4  version, 1 or 2
//	 44    4  time: counts snapshots
//	 48    8  transaction id, of whoever manages the pool
//	 56    8  block of the held metadata snapshot, 0 when none
//	 64  128  data space map root: 32 bytes used
//	192  128  metadata space map root: 32 bytes used
//	320    8  root of the mapping tree
//	328    8  root of the device details tree
//	336    4  data block size in sectors, 128 to 2097152, a multiple of 128
//	340    4  metadata block size in sectors, 8
//	344    8  metadata blocks
//	352   12  compatible, read-only compatible, and incompatible features; none are known
//
// Mapping tree: B-tree from the number of a device to the root of its own B-tree, from the
// block of the device to u64: the data block in the upper 40 bits, and below it the time at
// which it was given out. Devices share nodes of their trees after a snapshot, until one of
// them writes there.
//
// Device details: B-tree from the number of a device to {mapped blocks u64, transaction id
// u64, creation time u32, snapshotted time u32}. A block that is older than the snapshotted
// time may be shared.
package thin

import (
	"encoding/binary"
	"errors"

	"tidemark/format/pdata"
)

// SectorSize is the unit of data block sizes in the format, in bytes.
const SectorSize = 512

const (
	superMagic   = 27022010 // THIN_SUPERBLOCK_MAGIC
	superVersion = 2        // THIN_VERSION
	metaSectors  = 8
	flagCheck    = 1       // THIN_METADATA_NEEDS_CHECK_FLAG
	minSectors   = 128     // DATA_DEV_BLOCK_SIZE_MIN_SECTORS
	maxSectors   = 2097152 // DATA_DEV_BLOCK_SIZE_MAX_SECTORS
	timeBits     = 24
	detailsSize  = 24
	mappingSize  = 8
)

var (
	// ErrNotThin means that the input is not dm-thin metadata at all, or is
	// still unformatted.
	ErrNotThin = errors.New("not dm-thin metadata")
	// ErrDamaged means dm-thin metadata that contradicts itself.
	ErrDamaged = errors.New("the thin metadata is damaged")
	// ErrNewer means metadata of a version, or with features, that this package does not
	// know.
	ErrNewer = errors.New("the thin metadata is newer than this program")
	// ErrNoSnapshot means that no metadata snapshot is held.
	ErrNoSnapshot = errors.New("no metadata snapshot of the pool is held")
	// ErrNoDevice means that there is no thin device with a number.
	ErrNoDevice = errors.New("there is no such thin device")
)

// ours is what faults of this package say and wrap.
var ours = pdata.Format{Name: "thin", Damaged: ErrDamaged}

// The severities of faults; see package pdata.
const (
	Lost  = pdata.Lost
	Space = pdata.Space
	Minor = pdata.Minor
)

// Addr is the number of a metadata block.
type Addr = pdata.Addr

// Fault is one thing wrong with the metadata; as an error it wraps ErrDamaged, or the cause
// when the block could not be read at all.
type Fault = pdata.Fault

var le = binary.LittleEndian
