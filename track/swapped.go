package track

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"tidemark/block"
	"tidemark/linux/bpf"
	"tidemark/linux/dm"
)

// A disk can get another content without a single write: a zram disk that is reset,
// a device-mapper table that is replaced. What is in this file tells that.

// counted reads what the kernel has counted on a disk (Documentation/block/stat.rst):
// reads, sectors read, writes, sectors written.
func counted(disk string) (c [4]uint64, err error) {
	path := filepath.Join("/sys/block", disk, "stat")
	raw, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("track: %w", err)
	}
	fields := strings.Fields(string(raw))
	for i, at := range [4]int{0, 2, 4, 6} {
		if len(fields) <= at {
			return c, fmt.Errorf("track: %s: %q: too short", path, raw)
		}
		if c[i], err = strconv.ParseUint(fields[at], 10, 64); err != nil {
			return c, fmt.Errorf("track: %s: %w", path, err)
		}
	}
	return c, nil
}

// reset says in words that the disk was reset (zram_reset_device in
// drivers/block/zram/zram_drv.c sets its statistics to 0), and otherwise notes how
// far the kernel has counted. Counters that stand still, because queue/iostats is 0,
// prove nothing; nor do those that have overtaken, each of them, what was noted.
func (s *session) reset(cur *bpf.Bitmap) (why string, err error) {
	now, err := counted(s.rec.Disk)
	if err != nil {
		return "", err
	}
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

// remapped says in words that the device-mapper table of the disk, or of one below
// it, is not that of the beginning. One that was replaced and put back does not show.
func (s *session) remapped() string {
	now, err := s.mapping(s.rec.Disk)
	switch {
	case err != nil:
		return fmt.Sprintf("its device-mapper table cannot be read, so that it may have been replaced: %v", err)
	case now != s.rec.Mapping:
		return "its device-mapper table, or that of a device below it, was replaced"
	}
	return ""
}

// mapping returns a hash of the tables of a device-mapper device and of those below
// it; "" for another disk.
func (s *session) mapping(disk string) (string, error) {
	if !isMapped(disk) {
		return "", nil
	}
	if s.ctl == nil {
		ctl, err := dm.Open()
		if err != nil {
			return "", fmt.Errorf("track: %w", err)
		}
		s.ctl = ctl
	}
	sum := sha256.New()
	if err := hashTables(sum, s.ctl, disk, map[string]bool{}); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func isMapped(disk string) bool {
	_, err := os.Stat(filepath.Join("/sys/block", disk, "dm"))
	return err == nil
}

// hashTables adds the table of a disk, if it is device-mapper's, and those of what
// lies below it. It stops where the devices below change but the content does not:
// paths, a thin pool that is extended, the members of an md.
func hashTables(w io.Writer, ctl *dm.Control, disk string, seen map[string]bool) error {
	if seen[disk] || !isMapped(disk) {
		return nil
	}
	seen[disk] = true
	raw, err := os.ReadFile(filepath.Join("/sys/block", disk, "dev"))
	if err != nil {
		return fmt.Errorf("track: %w", err)
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(raw), "%d:%d", &major, &minor); err != nil {
		return fmt.Errorf("track: number of %s: %w", disk, err)
	}
	info, err := ctl.Find(major, minor)
	if err != nil {
		return fmt.Errorf("track: %w", err)
	}
	table, _, err := ctl.Table(info.Name)
	if err != nil {
		return fmt.Errorf("track: %w", err)
	}
	fmt.Fprintf(w, "%s\n%s\n", disk, info.UUID)
	deep := true
	for _, t := range table {
		switch t.Type {
		case "multipath", "thin-pool":
			t.Params, deep = "", false
		}
		fmt.Fprintln(w, t)
	}
	if !deep {
		return nil
	}
	below, err := disksBelow(disk)
	if err != nil {
		return err
	}
	for _, name := range below {
		if err := hashTables(w, ctl, name, seen); err != nil {
			return err
		}
	}
	return nil
}

// disksBelow returns the whole disks that a disk is made of, in order.
func disksBelow(disk string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join("/sys/block", disk, "slaves"))
	if err != nil {
		return nil, fmt.Errorf("track: %w", err)
	}
	var names []string
	for _, e := range entries {
		dir, err := filepath.EvalSymlinks(filepath.Join("/sys/class/block", e.Name()))
		if err != nil {
			return nil, fmt.Errorf("track: %w", err)
		}
		if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
			dir = filepath.Dir(dir)
		}
		names = append(names, filepath.Base(dir))
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// refuseDAX refuses a disk whose filesystems may be mounted so that programs write to
// its memory (queue/dax, Documentation/ABI/stable/sysfs-block): no bio, no request.
func refuseDAX(id block.Identity) error {
	raw, err := os.ReadFile(filepath.Join("/sys/block", id.Disk, "queue", "dax"))
	if err == nil && strings.TrimSpace(string(raw)) == "1" {
		return fmt.Errorf("track: %s: it can be mounted with DAX, and writes then pass the block layer by: %w", id.Disk, bpf.ErrNotSupported)
	}
	return nil
}

// close lets go of what the session has open.
func (s *session) close() error {
	err := s.fac.Close()
	if s.ctl != nil {
		err = errors.Join(err, s.ctl.Close())
		s.ctl = nil
	}
	return err
}
