package bpf

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"tidemark/linux/dm"
	"tidemark/linux/sysfs"
)

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
	if !sysfs.IsMapped(disk) {
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

// hashTables adds the table of a disk, if it is device-mapper's, and those of what
// lies below it. It stops where the devices below change but the content does not:
// paths, a thin pool that is extended, the members of an md.
func hashTables(w io.Writer, ctl *dm.Control, disk string, seen map[string]bool) error {
	if seen[disk] || !sysfs.IsMapped(disk) {
		return nil
	}
	seen[disk] = true
	number, err := sysfs.Text(filepath.Join(sysfs.DiskDir(disk), "dev"))
	if err != nil {
		return fmt.Errorf("track: %w", err)
	}
	dev, err := sysfs.ParseDev(number)
	if err != nil {
		return fmt.Errorf("track: number of %s: %w", disk, err)
	}
	info, err := ctl.Find(dev.Major, dev.Minor)
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
	entries, err := os.ReadDir(filepath.Join(sysfs.DiskDir(disk), "slaves"))
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
