package bpf

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tidemark/linux/dm"
	"tidemark/linux/sysfs"
)

// remapped says in words that the device-mapper table of the disk, or of one below
// it, is not that of the beginning. One that was replaced and put back does not show.
//
// A snapshot that is not ours may be merged into the disk, past the tracking. Where the kernel does
// not tell of that (bpf.LostMerged), one that was seen and is gone may have been.
func (s *session) remapped() string {
	now, err := s.mapping(s.rec.Disk)
	switch {
	case err != nil:
		return fmt.Sprintf("its device-mapper table cannot be read, so that it may have been replaced: %v", err)
	case now != s.rec.Mapping:
		return "its device-mapper table, or that of a device below it, was replaced"
	}
	if s.rec.Swaps {
		return ""
	}
	seen := filepath.Join(filepath.Dir(s.pl.record(s.rec.Disk)), "snapshotted")
	before, _ := os.ReadFile(seen) // none, or of another generation
	switch was := string(before) == s.rec.Generation; {
	case s.theirs && !was:
		if err := os.WriteFile(seen, []byte(s.rec.Generation), 0o600); err != nil {
			return fmt.Sprintf("that there is a snapshot of it cannot be noted: %v", err)
		}
	case was && !s.theirs:
		return "a snapshot of it that another program made is gone, and may have been merged into it"
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
	s.theirs = false
	if err := s.hashTables(sum, disk, map[string]bool{}); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// hashTables adds the table of a disk, if it is device-mapper's, and those of what
// lies below it. It stops where the devices below change but the content does not:
// paths, a thin pool that is extended, the members of an md.
func (s *session) hashTables(w io.Writer, disk string, seen map[string]bool) error {
	ctl := s.ctl
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
	name := info.Name
	if table, name, err = s.content(table, name); err != nil {
		return err
	}
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
	below, err := disksBelow(ctl, name)
	if err != nil {
		return err
	}
	for _, disk := range below {
		if err := s.hashTables(w, disk, seen); err != nil {
			return err
		}
	}
	return nil
}

// ourSnapshots begins the UUIDs of the devices of package snapshot, whose merges end all marks.
const ourSnapshots = "TIDEMARK-SNAPSHOT-"

// content looks through a table that only has a snapshot taken: "snapshot-origin" over the whole
// of a device reads and writes what that device does. It returns the table and the name of the
// device, in place of those given.
func (s *session) content(table []dm.Target, name string) ([]dm.Target, string, error) {
	for len(table) == 1 && table[0].Type == "snapshot-origin" {
		dev, err := sysfs.ParseDev(strings.TrimSpace(table[0].Params))
		if err != nil {
			return nil, "", fmt.Errorf("track: the table of %s: %w", name, err)
		}
		info, err := s.ctl.Find(dev.Major, dev.Minor)
		if err != nil {
			return nil, "", fmt.Errorf("track: %w", err)
		}
		below, _, err := s.ctl.Table(info.Name)
		if err != nil {
			return nil, "", fmt.Errorf("track: %w", err)
		}
		if n := len(below); n == 0 || below[n-1].Start+below[n-1].Len != table[0].Len {
			break
		}
		table, name = below, info.Name
		s.theirs = s.theirs || !strings.HasPrefix(info.UUID, ourSnapshots)
	}
	return table, name, nil
}

// disksBelow returns the whole disks that a device-mapper device is made of, by its active table, in
// order.
func disksBelow(ctl *dm.Control, name string) ([]string, error) {
	deps, err := ctl.Deps(name)
	if err != nil {
		return nil, fmt.Errorf("track: %w", err)
	}
	var names []string
	for _, dev := range deps {
		dir, err := sysfs.Real(dev.Dir())
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
