package mounts

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/sysfs"
)

// Superblock is what the superblock of a filesystem, or of what belongs to one, tells of the
// devices that it lies on.
type Superblock struct {
	// Type is "btrfs", "xfs", "ext" (2, 3 or 4), "jbd" for a journal of ext that has a
	// device to itself, or "xfs_external_log"; empty for everything else.
	Type string
	UUID string // of the filesystem; of the journal for jbd
	// Devices is how many devices a btrfs has, Member the UUID of this one, and Number its
	// place among them.
	Devices uint64
	Member  string
	Number  uint64
	Journal string // UUID of the journal that an ext has on a device of its own
	// ExternalLog and RealTime say that an XFS has its log, or data, on a device of its own.
	ExternalLog, RealTime bool
	// Log is where an XFS has its log in itself, in bytes; empty where it has none, or the
	// superblock makes no sense.
	Log extent.Extent

	journalDev uint32 // the number of the device with the journal, as new_encode_dev writes it
}

// Where the superblocks and their fields are, in bytes: fs/btrfs/accessors.h (struct
// btrfs_super_block, and struct btrfs_dev_item in it), fs/ext4/ext4.h (struct
// ext4_super_block), fs/xfs/libxfs/xfs_format.h (struct xfs_dsb) and xfs_log_format.h
// (struct xlog_rec_header).
const (
	btrfsAt, btrfsSize                       = 64 << 10, 4096
	btrfsID, btrfsMagic, btrfsDevices        = 32, 64, 136
	btrfsNumber, btrfsMember                 = 201, 267
	extAt, extSize                           = 1024, 1024
	extMagic, extCompat, extIncompat, extID  = 0x38, 0x5c, 0x60, 0x68
	extJournalID, extJournalInum, extJournal = 0xd0, 0xe0, 0xe4
	extHasJournal, extIsJournal              = 4, 8
	xfsSize                                  = 512
	xfsRBlocks, xfsID, xfsLogStart           = 16, 32, 48
	xfsBlockSize, xfsGroupBlocks             = 4, 84
	xfsLogBlocks, xfsGroupBits               = 96, 124
	xfsIncompat, xfsRTStart                  = 216, 288
	xfsZoned                                 = 1 << 9
	xlogMagic                                = 0xfeedbabe
	xlogVersion, xlogFormat, xlogID          = 8, 300, 304
	xlogSearched, xlogBlock                  = 256 << 10, 512 // as far as libblkid looks
)

// ReadSuperblock reads what is on a device of size bytes, into buffers that are fit for
// direct I/O.
func ReadSuperblock(r io.ReaderAt, size int64) (Superblock, error) {
	for _, read := range []func(io.ReaderAt, int64) (Superblock, error){readBtrfsSuper, readXFSSuper, readExtSuper, readXFSLog} {
		s, err := read(r, size)
		if err != nil {
			return Superblock{}, fmt.Errorf("mounts: superblock: %w", err)
		}
		if s.Type != "" {
			return s, nil
		}
	}
	return Superblock{}, nil
}

// piece reads n bytes at off, nil where the device is shorter.
func piece(r io.ReaderAt, size, off, n int64) ([]byte, error) {
	if off+n > size {
		return nil, nil
	}
	b := block.AlignedBuffer(int(n))
	if _, err := r.ReadAt(b, off); err != nil {
		return nil, fmt.Errorf("at byte %d: %w", off, err)
	}
	return b, nil
}

func readBtrfsSuper(r io.ReaderAt, size int64) (Superblock, error) {
	b, err := piece(r, size, btrfsAt, btrfsSize)
	if b == nil || string(b[btrfsMagic:btrfsMagic+8]) != "_BHRfS_M" {
		return Superblock{}, err
	}
	le := binary.LittleEndian
	return Superblock{
		Type: "btrfs", UUID: uuid(b[btrfsID:]), Devices: le.Uint64(b[btrfsDevices:]),
		Member: uuid(b[btrfsMember:]), Number: le.Uint64(b[btrfsNumber:]),
	}, nil
}

func readExtSuper(r io.ReaderAt, size int64) (Superblock, error) {
	b, err := piece(r, size, extAt, extSize)
	le := binary.LittleEndian
	if b == nil || le.Uint16(b[extMagic:]) != 0xef53 {
		return Superblock{}, err
	}
	s := Superblock{Type: "ext", UUID: uuid(b[extID:])}
	switch {
	case le.Uint32(b[extIncompat:])&extIsJournal != 0:
		s.Type = "jbd"
	case le.Uint32(b[extCompat:])&extHasJournal != 0 && le.Uint32(b[extJournalInum:]) == 0:
		s.Journal, s.journalDev = uuid(b[extJournalID:]), le.Uint32(b[extJournal:])
	}
	return s, nil
}

func readXFSSuper(r io.ReaderAt, size int64) (Superblock, error) {
	b, err := piece(r, size, 0, xfsSize)
	if b == nil || string(b[:4]) != "XFSB" {
		return Superblock{}, err
	}
	be := binary.BigEndian
	// The real-time data of a zoned XFS may follow on the same device.
	inside := be.Uint32(b[xfsIncompat:])&xfsZoned != 0 && be.Uint64(b[xfsRTStart:]) != 0
	return Superblock{
		Type: "xfs", UUID: uuid(b[xfsID:]),
		ExternalLog: be.Uint64(b[xfsLogStart:]) == 0,
		RealTime:    be.Uint64(b[xfsRBlocks:]) != 0 && !inside,
		Log:         xfsLog(b),
	}, nil
}

// xfsLog returns where the log lies by the superblock b. The number of its first block has
// that of an allocation group in the upper bits.
func xfsLog(b []byte) extent.Extent {
	be := binary.BigEndian
	start, bits := be.Uint64(b[xfsLogStart:]), b[xfsGroupBits]&31
	group, in := int64(start>>bits), int64(start&(1<<bits-1))
	size := int64(be.Uint32(b[xfsBlockSize:]))
	if start == 0 || size > 64<<10 || group > 1<<20 {
		return extent.Extent{} // external, or nonsense
	}
	return extent.Extent{
		Off: (group*int64(be.Uint32(b[xfsGroupBlocks:])) + in) * size,
		Len: int64(be.Uint32(b[xfsLogBlocks:])) * size,
	}
}

// readXFSLog looks for the first record of a log that has the device to itself.
func readXFSLog(r io.ReaderAt, size int64) (Superblock, error) {
	b, err := piece(r, size, 0, min(size, xlogSearched)&^(xlogBlock-1))
	for ; len(b) >= xlogBlock; b = b[xlogBlock:] {
		if isXFSLog(b) {
			return Superblock{Type: "xfs_external_log", UUID: uuid(b[xlogID:])}, nil
		}
	}
	return Superblock{}, err
}

// isXFSLog reports whether a block of a log is the header of a record.
func isXFSLog(b []byte) bool {
	be := binary.BigEndian
	version, format := be.Uint32(b[xlogVersion:]), be.Uint32(b[xlogFormat:])
	return be.Uint32(b) == xlogMagic && (version == 1 || version == 2) && format > 0 && format < 4
}

// uuid prints the first 16 bytes as blkid does.
func uuid(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// journalOf returns the device that an ext filesystem has its journal on, which the kernel
// shows nowhere but in the superblock; false where that is the filesystem's own, and where
// this process may not read it.
func (t *Table) journalOf(f *Filesystem) (sysfs.Dev, bool) {
	n, err := t.sys.node(f.Dev)
	if err != nil {
		return sysfs.Dev{}, false
	}
	if d, err := DeviceOf(n.path()); err != nil || d != f.Dev {
		return sysfs.Dev{}, false
	}
	file, err := os.OpenFile(n.path(), os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return sysfs.Dev{}, false
	}
	defer file.Close()
	s, err := readExtSuper(file, extAt+extSize)
	dev := s.journalDev // new_decode_dev in include/linux/kdev_t.h
	return sysfs.Dev{Major: dev >> 8 & 0xfff, Minor: dev&0xff | dev>>12&0xfff00}, err == nil && dev != 0
}
