package bpf

import (
	"fmt"

	"tidemark/linux/bpf"
	"tidemark/linux/sysfs"
)

// reset is for disks that get another content without a single write. It says in words that the disk was reset (zram_reset_device in
// drivers/block/zram/zram_drv.c sets its statistics to 0), and otherwise notes how
// far the kernel has counted. Counters that stand still, because queue/iostats is 0,
// prove nothing; nor do those that have overtaken, each of them, what was noted.
func (s *session) reset(cur *bpf.Bitmap) (why string, err error) {
	stat, err := sysfs.Stat(sysfs.DiskDir(s.rec.Disk))
	if err != nil {
		return "", fmt.Errorf("track: %w", err)
	}
	now := [4]uint64{stat.Reads(), stat.SectorsRead(), stat.Writes(), stat.SectorsWritten()}
	h := cur.Header()
	for i := range now {
		if now[i] < h.Counted[i] {
			return "the disk was reset: the kernel counts its reads and writes anew", nil
		}
	}
	h.Counted = now
	cur.SetHeader(h)
	return "", nil
}
