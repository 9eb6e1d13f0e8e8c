package mounts

// concat joins the parts of the table.
func concat(parts ...[]magic) []magic {
	var all []magic
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// mdMagic is 0xa92b4efc, little-endian (include/uapi/linux/raid/md_p.h).
const mdMagic = "\xfc\x4e\x2b\xa9"

// swaps lists the swap signatures: they end the first page, whose size differs
// between machines.
func swaps() []magic {
	var all []magic
	for page := int64(4096); page <= 65536; page *= 2 {
		for _, s := range []string{"SWAPSPACE2", "SWAP-SPACE", "S1SUSPEND\x00", "S2SUSPEND\x00"} {
			all = append(all, magic{KindSwap, "swap", page - 10, s, nil})
		}
	}
	return all
}

// zfsLabels lists the uberblocks of the first two ZFS labels: 1 KiB apart, from
// 128 KiB into each label of 256 KiB, in either byte order.
func zfsLabels() []magic {
	var all []magic
	for label := range int64(2) {
		for i := range int64(128) {
			off := label<<18 + 128<<10 + i<<10
			all = append(all,
				magic{KindMember, "zfs_member", off, "\x0c\xb1\xba\x00\x00\x00\x00\x00", nil},
				magic{KindMember, "zfs_member", off, "\x00\x00\x00\x00\x00\xba\xb1\x0c", nil})
		}
	}
	return all
}

// checkExt wants a block size that ext2, 3 and 4 can have: log2(size/1024) ≤ 6.
func checkExt(p *prober, at int64) (bool, error) {
	n, err := p.u32(at - 0x38 + 0x18)
	return n <= 6, err
}

// extVersion tells by its features which of ext2, ext3 and ext4 made a filesystem, as
// libblkid does: what ext3 does not know is ext4's, and ext2 has no journal.
func (p *prober) extVersion() (string, error) {
	const (
		super                        = 0x400
		hasJournal                   = 0x4                               // of the compatible features
		knownIncompat, knownReadOnly = 0x2 | 0x4 | 0x10, 0x1 | 0x2 | 0x4 // to ext3: filetype, recover, meta_bg; sparse_super, large_file, btree_dir
	)
	var features [3]uint32 // compatible, incompatible, compatible when read-only
	for i := range features {
		var err error
		if features[i], err = p.u32(super + 0x5c + 4*int64(i)); err != nil {
			return "", err
		}
	}
	switch {
	case features[1]&^knownIncompat != 0 || features[2]&^knownReadOnly != 0:
		return "4", nil
	case features[0]&hasJournal != 0:
		return "3", nil
	}
	return "2", nil
}

// checkNilfs wants revision 2 and a superblock of at most one block.
func checkNilfs(p *prober, _ int64) (bool, error) {
	rev, err := p.u32(0x400)
	return rev == 2, err
}

// checkMac wants a block size that is a power of two from 512.
func checkMac(p *prober, _ int64) (bool, error) {
	b, ok, err := p.bytes(2, 2)
	if err != nil || !ok {
		return false, err
	}
	size := uint16(b[0])<<8 | uint16(b[1])
	return size >= 512 && size&(size-1) == 0, nil
}

// checkDOS wants the entries of a partition table before the boot signature, not
// the code of a boot sector: every status byte 0x00 or 0x80, one entry in use.
func checkDOS(p *prober, _ int64) (bool, error) {
	used := false
	for i := range int64(4) {
		entry, ok, err := p.bytes(446+16*i, 16)
		if err != nil || !ok {
			return false, err
		}
		if entry[0]&0x7f != 0 {
			return false, nil
		}
		length := entry[12] | entry[13] | entry[14] | entry[15]
		used = used || (entry[4] != 0 && length != 0)
	}
	return used, nil
}

// checkMDEnd looks for the superblocks that md keeps at the end: format 1.0 in
// the last 8 to 12 KiB, format 0.90 in the last 64 to 128 KiB (in the byte order
// of the machine that made it).
func checkMDEnd(p *prober, _ int64) (bool, error) {
	for _, off := range []int64{(p.size - 8<<10) &^ (4<<10 - 1), p.size&^(64<<10-1) - 64<<10} {
		n, err := p.u32(off)
		if err != nil {
			return false, err
		}
		if n == 0xa92b4efc || n == 0xfc4e2ba9 {
			return true, nil
		}
	}
	return false, nil
}

// checkXFSLog looks for the first record of the log of an XFS on another device.
func checkXFSLog(p *prober, _ int64) (bool, error) {
	for off := int64(0); off < xlogSearched; off += xlogBlock {
		b, ok, err := p.bytes(off, xlogBlock)
		if err != nil || !ok {
			return false, err
		}
		if isXFSLog(b) {
			return true, nil
		}
	}
	return false, nil
}
