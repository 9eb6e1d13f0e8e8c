package witness

import (
	"encoding/binary"
	"encoding/hex"
)

// The superblock of XFS, at byte 0, big-endian (Linux, fs/xfs/libxfs/xfs_format.h, struct
// xfs_dsb): 4 u32 block size, 8 u64 blocks, 32 [16] UUID, 48 u64 first block of the log (0: on
// another device), 84 u32 blocks and 88 u32 number of groups, 96 u32 blocks of the log, 102 u16
// bytes in a sector, 120 u8 block size as a power of two, 124 u8 the same of the blocks of a group, 240
// u64 LSN.
const (
	xfsMagic = "XFSB"

	// The log is a ring of sectors (fs/xfs/libxfs/xfs_log_format.h). Every sector begins with the
	// number of the round, its cycle. A record has a header: u32 magic, u32 cycle, u32 version, u32
	// bytes that follow, u64 LSN, 40 u32 operations, 320 u32 size of the buffers. Its first operation:
	// 9 u8 flags, of which one says that an unmount wrote it.
	logSector       = 512
	logMagic        = 0xfeedbabe
	logUnmount      = 0x20
	logHeaderCovers = 32 << 10  // bytes of a record that one header sector tells of
	logRecord       = 256 << 10 // bytes in the largest record (XLOG_MAX_RECORD_BSIZE)
	// Every group begins with four sectors: a copy of the superblock, then what leads to its free space
	// and to its inodes.
	groupSectors = 4
	maxGroups    = 4096
	// logAhead is how much behind the head is kept as a checksum: a mount stamps there.
	logAhead = 16 << 10
)

// xfsLog is the ring of sectors.
type xfsLog struct {
	p       part // of the disk
	sectors int64
}

func readXFS(p part, head []byte) (Volume, error) {
	if string(head[:4]) != xfsMagic {
		return Volume{}, errNone
	}
	blockSize, blockLog := int64(binary.BigEndian.Uint32(head[4:])), head[120]
	blocks, perGroup := binary.BigEndian.Uint64(head[8:]), uint64(binary.BigEndian.Uint32(head[84:]))
	if blockLog < 9 || blockLog > 16 || blockSize != 1<<blockLog || blocks == 0 || blocks > uint64(p.size/blockSize) {
		return Volume{}, errNone
	}
	log, err := xfsLogOf(p, head, blockSize, perGroup)
	if err != nil {
		return Volume{}, err
	}
	v := Volume{Len: int64(blocks) * blockSize, Kind: "xfs", State: NeedsRecovery}
	v.add("UUID", hex.EncodeToString(head[32:48]))
	h, cycle, err := log.head()
	if err != nil {
		return Volume{}, err
	}
	before, err := log.ring(h-logRecord/logSector-64, logRecord/logSector+64)
	if err != nil {
		return Volume{}, err
	}
	ahead, err := log.ring(h, logAhead/logSector)
	if err != nil {
		return Volume{}, err
	}
	v.add("log head", h)
	v.add("log cycle", cycle)
	v.add("log", digest(append(before, ahead...)))
	groups, err := xfsGroups(p, head, int64(perGroup)*blockSize)
	if err != nil {
		return Volume{}, err
	}
	v.add("groups", groups)
	if unmounted(before) {
		v.State = Clean
	}
	return v, nil
}

// xfsGroups returns a checksum of how the groups begin, of size bytes each. A repair writes the indexes of
// all of them anew, and leaves the log and the superblock as they were; but it clears there the LSN of
// the last change by the kernel (repair/agbtree.c and repair/phase5.c of xfsprogs).
func xfsGroups(p part, sb []byte, size int64) (string, error) {
	count, sector := int64(binary.BigEndian.Uint32(sb[88:])), int(binary.BigEndian.Uint16(sb[102:]))
	if count > maxGroups || sector < logSector || sector > 32<<10 {
		return "", errNone
	}
	var all []byte
	for i := range count {
		raw, err := p.read(i*size, groupSectors*sector)
		if err != nil {
			return "", err
		}
		all = append(all, digest(raw)...)
	}
	return digest(all), nil
}

// xfsLogOf finds the log by the superblock. A block's number is that of its group, followed by as
// many bits as the blocks of a group need, of its place in there.
func xfsLogOf(p part, sb []byte, blockSize int64, perGroup uint64) (xfsLog, error) {
	start, count := binary.BigEndian.Uint64(sb[48:]), int64(binary.BigEndian.Uint32(sb[96:]))
	bits := sb[124]
	if start == 0 || bits > 31 || perGroup == 0 || perGroup > 1<<bits {
		return xfsLog{}, errNone
	}
	group, block := start>>bits, start&(1<<bits-1)
	if group >= uint64(binary.BigEndian.Uint32(sb[88:])) || block >= perGroup {
		return xfsLog{}, errNone
	}
	first := group*perGroup + block // no overflow: both are less than 2^32
	whole := uint64(p.size / blockSize)
	if first >= whole || count <= 0 || uint64(count) > whole-first {
		return xfsLog{}, errNone
	}
	off, size := int64(first)*blockSize, count*blockSize
	return xfsLog{part{p.r, p.off + off, size}, size / logSector}, nil
}

func (l xfsLog) cycle(sector int64) (uint32, error) {
	raw, err := l.p.read(sector*logSector, logSector)
	if err != nil {
		return 0, err
	}
	if c := binary.BigEndian.Uint32(raw); c != logMagic {
		return c, nil
	}
	return binary.BigEndian.Uint32(raw[4:]), nil // the first sector of a record
}

// head returns the sector where the next record will be written, and the cycle before it. It is
// exact when the filesystem was unmounted, as then no write was left out; else it is somewhere
// near, which tells as well that it moved (fs/xfs/xfs_log_recover.c, xlog_find_head).
func (l xfsLog) head() (sector int64, cycle uint32, err error) {
	first, err := l.cycle(0)
	if err != nil {
		return 0, 0, err
	}
	last, err := l.cycle(l.sectors - 1)
	if err != nil {
		return 0, 0, err
	}
	if first == last {
		return 0, first, nil
	}
	low, high := int64(0), l.sectors-1 // low is of this round, high of the one before
	for high-low > 1 {
		mid := low + (high-low)/2
		c, err := l.cycle(mid)
		if err != nil {
			return 0, 0, err
		}
		if c == first {
			low = mid
		} else {
			high = mid
		}
	}
	return high, first, nil
}

// ring reads count sectors from one on, which may be before the beginning. A log with fewer
// sectors than that is read around once.
func (l xfsLog) ring(from, count int64) ([]byte, error) {
	count = min(count, l.sectors)
	from = ((from % l.sectors) + l.sectors) % l.sectors
	until := min(count, l.sectors-from)
	all, err := l.p.read(from*logSector, int(until*logSector))
	if err != nil || until == count {
		return all, err
	}
	rest, err := l.p.read(0, int((count-until)*logSector))
	return append(all, rest...), err
}

// unmounted reports whether the last record of those that were written before the head is that of
// an unmount and ends at the head (fs/xfs/xfs_log_recover.c, xlog_check_unmount_rec).
func unmounted(before []byte) bool {
	for off := len(before) - logSector; off >= 0; off -= logSector {
		h := before[off:]
		if binary.BigEndian.Uint32(h) != logMagic {
			continue
		}
		headers := 1
		if size := binary.BigEndian.Uint32(h[320:]); binary.BigEndian.Uint32(h[8:])&2 != 0 && size > logHeaderCovers && size <= logRecord {
			headers = int((size + logHeaderCovers - 1) / logHeaderCovers)
		}
		length := binary.BigEndian.Uint32(h[12:])
		op := headers * logSector
		if length == 0 || length > logRecord || len(h) != op+int(length+logSector-1)/logSector*logSector {
			return false
		}
		return binary.BigEndian.Uint32(h[40:]) == 1 && h[op+9]&logUnmount != 0
	}
	return false
}
