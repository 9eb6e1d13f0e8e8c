package witness

import (
	"encoding/binary"
	"encoding/hex"
)

// The superblock of ext2, ext3 and ext4, at byte 1024, little-endian (Linux, fs/ext4/ext4.h,
// struct ext4_super_block):
//
//	0x04 u32 blocks, low half       0x38 u16 0xef53
//	0x14 u32 first data block       0x3a u16 state: 1 unmounted cleanly
//	0x18 u32 block size: 1024<<n    0x58 u16 size of an inode
//	0x28 u32 inodes per group       0x5c u32 features, 0x60 incompatible, 0x64 read-only
//	0x2c u32 time of the last mount 0x68 [16] UUID
//	0x30 u32 time of the last write 0xe0 u32 inode of the journal
//	0x34 u16 mounts since a check   0xfe u16 size of a group descriptor
//	0x40 u32 time of the last check 0x150 u32 blocks, high half
const (
	extSuper      = 1024
	extSuperSize  = 1024
	extMagic      = 0xef53
	extValid      = 1
	extHasJournal = 0x4 // of the features

	extRecover    = 0x4 // of the incompatible features, as those that follow
	extJournalDev = 0x8
	ext64bit      = 0x80

	extInodeFlags  = 0x20 // in an inode
	extInodeBlocks = 0x28
	extExtents     = 0x80000 // of its flags
	extentMagic    = 0xf30a
	maxExtentDepth = 5 // fs/ext4/extents.c, EXT4_MAX_EXTENT_DEPTH

	jbdMagic = 0xc03b3998 // of the journal's superblock, big-endian (include/linux/jbd2.h)

	mountCount = "mount count"
)

// ext is a filesystem while it is read.
type ext struct {
	p         part
	sb        []byte
	blockSize int64
}

func readExt(p part, head []byte) (Volume, error) {
	sb := head[extSuper : extSuper+extSuperSize]
	log := binary.LittleEndian.Uint32(sb[0x18:])
	incompat := binary.LittleEndian.Uint32(sb[0x60:])
	if binary.LittleEndian.Uint16(sb[0x38:]) != extMagic || log > 6 || incompat&extJournalDev != 0 {
		return Volume{}, errNone
	}
	e := ext{p: p, sb: sb, blockSize: 1024 << log}
	blocks := uint64(binary.LittleEndian.Uint32(sb[4:]))
	if incompat&ext64bit != 0 {
		blocks |= uint64(binary.LittleEndian.Uint32(sb[0x150:])) << 32
	}
	if blocks == 0 || blocks > uint64(p.size/e.blockSize) {
		return Volume{}, errNone
	}
	v := Volume{Len: int64(blocks) * e.blockSize, Kind: "ext4", State: Clean, Mounts: int(binary.LittleEndian.Uint16(sb[0x34:]))}
	v.add("UUID", hex.EncodeToString(sb[0x68:0x78]))
	v.add(mountCount, v.Mounts)
	v.add("last mount", binary.LittleEndian.Uint32(sb[0x2c:]))
	v.add("last write", binary.LittleEndian.Uint32(sb[0x30:]))
	v.add("last check", binary.LittleEndian.Uint32(sb[0x40:]))
	state := binary.LittleEndian.Uint16(sb[0x3a:])
	v.add("state", state)
	if state&extValid == 0 || incompat&extRecover != 0 {
		v.State = NeedsRecovery
	}
	if binary.LittleEndian.Uint32(sb[0x5c:])&extHasJournal == 0 {
		return v, nil
	}
	return v, e.journal(&v)
}

// journal adds the journal's superblock. One on another device is not looked for: the superblock
// of the filesystem tells of a mount as well.
func (e ext) journal(v *Volume) error {
	inode := binary.LittleEndian.Uint32(e.sb[0xe0:])
	if inode == 0 {
		return nil
	}
	block, err := e.firstBlock(inode)
	if err != nil {
		return err
	}
	jsb, err := e.p.read(block*e.blockSize, extSuperSize)
	if err != nil {
		return err
	}
	if binary.BigEndian.Uint32(jsb) != jbdMagic {
		return errNone
	}
	start := binary.BigEndian.Uint32(jsb[28:])
	v.add("journal sequence", binary.BigEndian.Uint32(jsb[24:]))
	v.add("journal start", start)
	v.add("journal", digest(jsb))
	if start != 0 {
		v.State = NeedsRecovery
	}
	return nil
}

// firstBlock returns the number of the first block of an inode of the first group.
func (e ext) firstBlock(inode uint32) (int64, error) {
	if inode > binary.LittleEndian.Uint32(e.sb[0x28:]) {
		return 0, errNone
	}
	groups := (int64(binary.LittleEndian.Uint32(e.sb[0x14:])) + 1) * e.blockSize
	desc, err := e.p.read(groups, 64)
	if err != nil {
		return 0, err
	}
	table := int64(binary.LittleEndian.Uint32(desc[8:]))
	if binary.LittleEndian.Uint32(e.sb[0x60:])&ext64bit != 0 && binary.LittleEndian.Uint16(e.sb[0xfe:]) >= 64 {
		table |= int64(binary.LittleEndian.Uint32(desc[0x28:])) << 32
	}
	size := int64(binary.LittleEndian.Uint16(e.sb[0x58:]))
	if size == 0 { // revision 0
		size = 128
	}
	if table <= 0 || table > e.p.size/e.blockSize {
		return 0, errNone
	}
	raw, err := e.p.read(table*e.blockSize+int64(inode-1)*size, 128)
	if err != nil {
		return 0, err
	}
	blocks := raw[extInodeBlocks : extInodeBlocks+60]
	if binary.LittleEndian.Uint32(raw[extInodeFlags:])&extExtents == 0 {
		return int64(binary.LittleEndian.Uint32(blocks)), nil
	}
	return e.firstExtent(blocks)
}

// firstExtent follows the first entry of every level of a tree of extents. A node: u16 magic, u16
// entries, u16, u16 depth, u32; then entries of 12 bytes: of a leaf u32 first block of the file,
// u16 length, u16 high half, u32 low half; of an index u32, u32 low half, u16 high half.
func (e ext) firstExtent(node []byte) (int64, error) {
	for range maxExtentDepth + 1 {
		if binary.LittleEndian.Uint16(node) != extentMagic || binary.LittleEndian.Uint16(node[2:]) == 0 {
			return 0, errNone
		}
		first := node[12:24]
		if binary.LittleEndian.Uint16(node[6:]) == 0 {
			if binary.LittleEndian.Uint32(first) != 0 {
				return 0, errNone
			}
			return e.inside(binary.LittleEndian.Uint16(first[6:]), binary.LittleEndian.Uint32(first[8:]))
		}
		block, err := e.inside(binary.LittleEndian.Uint16(first[8:]), binary.LittleEndian.Uint32(first[4:]))
		if err != nil {
			return 0, err
		}
		if node, err = e.p.read(block*e.blockSize, int(e.blockSize)); err != nil {
			return 0, err
		}
	}
	return 0, errNone
}

func (e ext) inside(high uint16, low uint32) (int64, error) {
	block := int64(high)<<32 | int64(low)
	if block <= 0 || block >= e.p.size/e.blockSize {
		return 0, errNone
	}
	return block, nil
}
