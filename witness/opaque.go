package witness

import "bytes"

// signs are what begins things that can be written with no trace which is quickly found.
var signs = []struct {
	kind string
	off  int
	sign string
}{
	{"luks", 0, "LUKS\xba\xbe"},
	{"lvm", 0x018, "LVM2 001"},
	{"lvm", 0x218, "LVM2 001"},
	{"lvm", 0x418, "LVM2 001"},
	{"lvm", 0x618, "LVM2 001"},
	{"raid", 0, "\xfc\x4e\x2b\xa9"},
	{"raid", 4096, "\xfc\x4e\x2b\xa9"},
	{"swap", 4096 - 10, "SWAPSPACE2"},
	{"swap", 8192 - 10, "SWAPSPACE2"},
	{"swap", 16384 - 10, "SWAPSPACE2"},
	{"swap", 65536 - 10, "SWAPSPACE2"},
	{"swap", 4096 - 10, "S1SUSPEND"},
	{"ntfs", 3, "NTFS    "},
	{"exfat", 3, "EXFAT   "},
	{"bcache", 4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"},
	{"f2fs", 1024, "\x10\x20\xf5\xf2"},
}

// opaque returns the kinds whose signs are at the beginning of a volume.
func opaque(head []byte) []string {
	var kinds []string
	for _, s := range signs {
		if bytes.HasPrefix(head[s.off:], []byte(s.sign)) && (len(kinds) == 0 || kinds[len(kinds)-1] != s.kind) {
			kinds = append(kinds, s.kind)
		}
	}
	if looksFAT(head) {
		kinds = append(kinds, "vfat")
	}
	return kinds
}

// looksFAT knows a boot sector of FAT by the text that mkfs.fat and others leave in it.
func looksFAT(head []byte) bool {
	return head[510] == 0x55 && head[511] == 0xaa && (bytes.HasPrefix(head[0x36:], []byte("FAT1")) || bytes.HasPrefix(head[0x52:], []byte("FAT32")))
}
