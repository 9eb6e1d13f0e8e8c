package witness

import (
	"encoding/binary"
	"encoding/hex"
)

// The superblock of Btrfs, at byte 65536, little-endian (Linux, include/uapi/linux/btrfs_tree.h,
// struct btrfs_super_block): 0x20 [16] UUID, 0x40 [8] magic, 0x48 u64 generation, which every
// commit increases, 0x60 u64 root of the log, 0xc9 the device: u64 number, u64 bytes of it.
const (
	btrfsSuper     = 64 << 10
	btrfsSuperSize = 4096
	btrfsMagic     = "_BHRfS_M"
)

func readBtrfs(p part, head []byte) (Volume, error) {
	sb := head[btrfsSuper : btrfsSuper+btrfsSuperSize]
	size := binary.LittleEndian.Uint64(sb[0xd1:])
	if string(sb[0x40:0x48]) != btrfsMagic || size == 0 || size > uint64(p.size) {
		return Volume{}, errNone
	}
	v := Volume{Len: int64(size), Kind: "btrfs", State: Clean}
	v.add("UUID", hex.EncodeToString(sb[0x20:0x30]))
	v.add("device", binary.LittleEndian.Uint64(sb[0xc9:]))
	v.add("generation", binary.LittleEndian.Uint64(sb[0x48:]))
	log := binary.LittleEndian.Uint64(sb[0x60:])
	v.add("log", log)
	if log != 0 {
		v.State = NeedsRecovery
	}
	return v, nil
}
