package snapshot

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/dm"
	"tidemark/linux/dmera"
	"tidemark/linux/sysfs"
)

// Era devices. dm-era keeps all in its metadata, so that its target must not be in two tables that
// are in use. X stays what it is, and what is below it gets the snapshot:
//
//	X              era META X+real+origin, in place of era META DATA
//	X+real+origin  snapshot-origin X+real
//	X+real         linear DATA
//
// The target reads its metadata when a table is loaded (era_ctr in drivers/md/dm-era-target.c), and
// misses what the old one writes after. So the table is loaded when X stands still, at the instant
// and when it gets its own back. Until the kernel swaps the two in one step the old one alone has
// written, and X can go on with it. Each swap costs an era, as any resume does.

// under is the device between an era device and what its data is.
func (v *Volume) under() string { return v.real() + "+origin" }

// eraTable is the table of an era device: three words, "META DATA SECTORS".
func eraTable(table []dm.Target) (words []string, ok bool) {
	if len(table) != 1 || table[0].Type != "era" {
		return nil, false
	}
	words = strings.Fields(table[0].Params)
	return words, len(words) == 3
}

// below is the table of what the volume consists of, given its own.
func (v *Volume) below(table []dm.Target) []dm.Target {
	if words, ok := eraTable(table); ok {
		return v.table("linear", words[1]+" 0")
	}
	return table
}

// insert makes the device under an era device, and returns the table to put over it.
func (v *Volume) insert(ctl *dm.Control, words []string) ([]dm.Target, error) {
	if err := add(ctl, v.under(), v.table("snapshot-origin", "/dev/mapper/"+v.real()), dm.LoadOptions{}); err != nil {
		return nil, err
	}
	return v.table("era", fmt.Sprintf("%s /dev/mapper/%s %s", words[0], v.under(), words[2])), nil
}

// inserted reports whether an era device with that table lies on ours.
func (v *Volume) inserted(ctl *dm.Control, table []dm.Target) (bool, error) {
	words, ok := eraTable(table)
	if !ok {
		return false, nil
	}
	info, ours, err := own(ctl, v.under())
	return ours && words[1] == info.Dev().String(), err
}

// putBackEra gives an era device the data back that it had.
func (s *Snapshot) putBackEra(ctl *dm.Control, v *Volume) error {
	table, _, err := ctl.Table(v.real())
	if err != nil {
		return err
	}
	number, _, _ := strings.Cut(table[0].Params, " ")
	data, err := sysfs.ParseDev(number)
	if err != nil {
		return err
	}
	d, err := dmera.Open(ctl, v.Name, s.era())
	if err != nil {
		return err
	}
	return errors.Join(d.Rebase(data), d.Close())
}

func (s *Snapshot) era() dmera.Options {
	return dmera.Options{RunDir: s.o.Track.RunDir, StateDir: s.o.StateDir}
}

// touch has dm-era count bytes of a store inside as changed, which changed below it: a sector of each
// of its blocks is written as it is. They are of a file that nobody writes to. Where the kernel lets
// nobody write to a disk that is mounted, earlier marks are lost.
func (s *Snapshot) touch(ctl *dm.Control, v *Volume, set extent.Set) error {
	e, err := dmera.Open(ctl, v.Name, s.era())
	if errors.Is(err, dm.ErrNotFound) || errors.Is(err, dmera.ErrNotEra) {
		return nil // no mark counts from it
	}
	if err != nil {
		return err
	}
	defer e.Close()
	d, err := block.Open(v.path(), block.Options{Write: true, Direct: true})
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EPERM) {
		return dmera.NotePast(v.Name, e.MetaPath(), s.era())
	}
	if err != nil {
		return err
	}
	sector := block.AlignedBuffer(d.SectorSize())
	for _, x := range set.Extents() {
		for at := x.Off; at < x.End() && err == nil; at = (at/e.BlockSize() + 1) * e.BlockSize() {
			if _, err = d.ReadAt(sector, at); err == nil {
				_, err = d.WriteAt(sector, at)
			}
		}
	}
	return errors.Join(err, d.Close())
}
