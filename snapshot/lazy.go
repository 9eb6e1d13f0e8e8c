package snapshot

import (
	"bufio"
	"encoding/binary"
	"io"

	"tidemark/words"
)

// What of a superblock of ext4, at byte 1024, and of a group descriptor tells how much of a new
// filesystem is not written yet (Linux, fs/ext4/ext4.h; ext4_init_inode_table in fs/ext4/ialloc.c).
const (
	extSuper  = 1024
	extMagic  = 0xef53
	ext64bit  = 0x80  // of the incompatible features: descriptors of another size
	extMetaBG = 0x10  // of those: descriptors lie elsewhere
	extSums   = 0x410 // of the read-only ones, GDT_CSUM and METADATA_CSUM: inode tables may be written later
	extZeroed = 0x4   // of the flags of a group: its inode table has been written

	maxDescriptor = 1024
)

// lazyTables returns how many bytes of inode tables the kernel has still to zero on an ext4: mkfs leaves
// that to it (lazy_itable_init), and it goes on for some time after the first mount. Of anything else it
// is 0.
func lazyTables(r io.ReaderAt) (sum int64, err error) {
	sb, le := make([]byte, 1024), binary.LittleEndian
	if n, err := r.ReadAt(sb, extSuper); n < len(sb) {
		if err == io.EOF {
			err = nil
		}
		return 0, err
	}
	log, perGroup, incompat, size := le.Uint32(sb[0x18:]), le.Uint32(sb[0x20:]), le.Uint32(sb[0x60:]), 32
	if incompat&ext64bit != 0 {
		size = int(le.Uint16(sb[0xfe:]))
	}
	if le.Uint16(sb[0x38:]) != extMagic || log > 6 || perGroup == 0 || size < 32 || size > maxDescriptor || incompat&extMetaBG != 0 || le.Uint32(sb[0x64:])&extSums == 0 {
		return 0, nil
	}
	blocks := uint64(le.Uint32(sb[4:]))
	if incompat&ext64bit != 0 {
		blocks |= uint64(le.Uint32(sb[0x150:])) << 32
	}
	first, inode := le.Uint32(sb[0x14:]), int64(le.Uint16(sb[0x58:]))
	groups := int64((blocks + uint64(perGroup) - 1 - min(uint64(first), blocks)) / uint64(perGroup))
	in := bufio.NewReaderSize(io.NewSectionReader(r, (int64(first)+1)<<(10+log), groups*int64(size)), 64<<10)
	for d := make([]byte, size); ; {
		if _, err := io.ReadFull(in, d); err == io.EOF || err == io.ErrUnexpectedEOF { // there are no more
			return sum, nil
		} else if err != nil {
			return 0, err
		}
		if le.Uint16(d[0x12:])&extZeroed == 0 {
			sum += int64(min(uint32(le.Uint16(d[0x1c:])), le.Uint32(sb[0x28:]))) * inode // inodes that were never used
		}
	}
}

// lazily has the store of a volume, where nobody gives its size, have room for what the kernel itself
// has still to write to a new filesystem.
func (v *Volume) lazily() error {
	d, err := v.open()
	if err != nil {
		return err
	}
	defer d.Close()
	n, err := lazyTables(d)
	if n > 0 {
		v.share.size += n
		v.share.why += ", and " + words.Size(n) + " that the kernel has still to write to the new ext4"
	}
	return err
}
