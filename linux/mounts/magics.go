package mounts

// magics holds the places where libblkid (util-linux 2.40, libblkid/src/superblocks and
// partitions) looks for each owner. Entries of two bytes carry a check.
var magics = concat(filesystems, members, swaps(), tables, zfsLabels())

var filesystems = []magic{
	{KindFilesystem, "ext", 0x438, "\x53\xef", checkExt},
	{KindFilesystem, "xfs", 0, "XFSB", nil},
	{KindFilesystem, "btrfs", 0x10040, "_BHRfS_M", nil},
	{KindFilesystem, "vfat", 0x52, "FAT32   ", nil},
	{KindFilesystem, "vfat", 0x36, "FAT12   ", nil},
	{KindFilesystem, "vfat", 0x36, "FAT16   ", nil},
	{KindFilesystem, "vfat", 0x36, "FAT     ", nil},
	{KindFilesystem, "exfat", 3, "EXFAT   ", nil},
	{KindFilesystem, "ntfs", 3, "NTFS    ", nil},
	{KindFilesystem, "refs", 3, "ReFS\x00\x00\x00\x00", nil},
	{KindFilesystem, "f2fs", 0x400, "\x10\x20\xf5\xf2", nil},
	{KindFilesystem, "erofs", 0x400, "\xe2\xe1\xf5\xe0", nil},
	{KindFilesystem, "squashfs", 0, "hsqs", nil},
	{KindFilesystem, "squashfs", 0, "sqsh", nil},
	{KindFilesystem, "cramfs", 0, "\x45\x3d\xcd\x28", nil},
	{KindFilesystem, "cramfs", 0, "\x28\xcd\x3d\x45", nil},
	{KindFilesystem, "romfs", 0, "-rom1fs-", nil},
	{KindFilesystem, "iso9660", 0x8001, "CD001", nil},
	{KindFilesystem, "udf", 0x8001, "BEA01", nil},
	{KindFilesystem, "hfsplus", 0x400, "H+\x00\x04", nil},
	{KindFilesystem, "hfsplus", 0x400, "HX\x00\x05", nil},
	{KindFilesystem, "apfs", 32, "NXSB", nil},
	{KindFilesystem, "jfs", 0x8000, "JFS1", nil},
	{KindFilesystem, "reiserfs", 0x10034, "ReIsEr", nil},
	{KindFilesystem, "reiserfs", 0x2034, "ReIsEr", nil},
	{KindFilesystem, "reiser4", 0x10000, "ReIsEr4", nil},
	{KindFilesystem, "nilfs2", 0x406, "\x34\x34", checkNilfs},
	{KindFilesystem, "gfs2", 0x10000, "\x01\x16\x19\x70", nil},
	{KindFilesystem, "ocfs2", 0x400, "OCFSV2", nil},
	{KindFilesystem, "ocfs2", 0x800, "OCFSV2", nil},
	{KindFilesystem, "ocfs2", 0x1000, "OCFSV2", nil},
	{KindFilesystem, "ocfs2", 0x2000, "OCFSV2", nil},
	{KindFilesystem, "ufs", 0x255c, "\x54\x19\x01\x00", nil},
	{KindFilesystem, "ufs2", 0x1055c, "\x19\x01\x54\x19", nil},
	{KindFilesystem, "zonefs", 0, "SFOZ", nil},
	{KindFilesystem, "vmfs", 0x200000, "\x5e\xf1\xab\x2f", nil},
	{KindFilesystem, "bcachefs", 0x1018, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", nil},
}

var members = []magic{
	{KindMember, "crypto_LUKS", 0, "LUKS\xba\xbe", nil},
	{KindMember, "crypto_LUKS", 0x4000, "SKUL\xba\xbe", nil},
	{KindMember, "crypto_LUKS", 0x8000, "SKUL\xba\xbe", nil},
	{KindMember, "BitLocker", 3, "-FVE-FS-", nil},
	{KindMember, "LVM2_member", 0x018, "LVM2 001", nil},
	{KindMember, "LVM2_member", 0x218, "LVM2 001", nil},
	{KindMember, "LVM2_member", 0x418, "LVM2 001", nil},
	{KindMember, "LVM2_member", 0x618, "LVM2 001", nil},
	{KindMember, "linux_raid_member", 0, mdMagic, nil},      // format 1.1
	{KindMember, "linux_raid_member", 0x1000, mdMagic, nil}, // format 1.2
	{KindMember, "linux_raid_member", -1, "", checkMDEnd},   // formats 0.90 and 1.0
	{KindMember, "isw_raid_member", -1024, "Intel Raid ISM Cfg Sig.", nil},
	{KindMember, "ddf_raid_member", -512, "\xde\x11\xde\x11", nil},
	{KindMember, "ddf_raid_member", -512, "\x11\xde\x11\xde", nil},
	{KindMember, "bcache", 0x1018, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", nil},
	{KindMember, "xfs_external_log", 0, "", checkXFSLog},
	{KindMember, "ceph_bluestore", 0, "bluestore block device", nil},
	{KindMember, "VMFS_volume_member", 0x100000, "\x0d\xd0\x01\xc0", nil},
	{KindMember, "dm-verity", 0, "verity\x00\x00", nil},
	{KindMember, "dm-integrity", 0, "integrt\x00", nil},
	{KindMember, "dm-snapshot", 0, "SnAp", nil},
}

var tables = []magic{
	{KindTable, "gpt", 512, "EFI PART", nil},
	{KindTable, "gpt", 4096, "EFI PART", nil},
	{KindTable, "gpt", -512, "EFI PART", nil},
	{KindTable, "gpt", -4096, "EFI PART", nil},
	{KindTable, "dos", 510, "\x55\xaa", checkDOS},
	{KindTable, "sun", 508, "\xda\xbe", nil},
	{KindTable, "sgi", 0, "\x0b\xe5\xa9\x41", nil},
	{KindTable, "mac", 0, "ER", checkMac},
	{KindTable, "bsd", 512, "\x57\x45\x56\x82", nil},
}
