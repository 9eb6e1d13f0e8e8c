package dmera

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strings"

	"tidemark/block"
	"tidemark/format/era"
	"tidemark/linux/atomicfile"
	"tidemark/linux/sysfs"
)

// Gap is a time in which the metadata missed writes: a list of changes since an era
// before its end is not complete.
type Gap struct {
	// End is the first era that began after the gap; 0 when there is none.
	End era.Era
	// Why is ErrDiscards or ErrPast.
	Why error
}

// gapRecord is the newest gap of a device, and the count of its discards so far: the
// kernel's own count begins anew at every activation. It is in StateDir/era/NAME.gap.json,
// apart from the record of a claim, for other processes write it while a claim is held.
type gapRecord struct {
	Version  int          `json:"version"`
	Identity era.Identity `json:"identity"`
	End      era.Era      `json:"end"`
	Past     bool         `json:"past,omitempty"` // why: ErrPast, not ErrDiscards
	// The activation that the count is of.
	Boot    string `json:"boot,omitempty"`
	Number  string `json:"number,omitempty"`
	DiskSeq uint64 `json:"diskseq,omitempty"`
	Count   uint64 `json:"count,omitempty"`
}

// notEnded is the end of a gap whose metadata could not be read. Every mark is lost until
// NoteGaps or NotePast can read the metadata and put an era in its place.
const notEnded era.Era = math.MaxUint32

func (r gapRecord) gap() Gap {
	if r.Past {
		return Gap{r.End, ErrPast}
	}
	return Gap{r.End, ErrDiscards}
}

// NoteGaps returns the newest gap that was seen. It writes a new gap down, durably, before
// it returns: call it when nothing is frozen, and before the kernel's count of discards is
// lost. Activate and Remove call it. Discards that are switched on count as a discard at
// this moment.
//
// NoteGaps does not see discards that another program switched on when that program also
// took the device down, or when the system ended, before the next call.
func (d *Device) NoteGaps(ctx context.Context) (Gap, error) {
	id, err := d.Identity()
	if err != nil {
		return Gap{}, err
	}
	path := gapPath(d.o.StateDir, d.Name())
	was, err := readGap(path, id)
	if err != nil {
		return Gap{}, fmt.Errorf("dmera: %s: %w", d.Name(), err)
	}
	now := gapRecord{Version: recordVersion, Identity: id, Number: d.Number().String()}
	if now.Boot, now.DiskSeq, err = d.activation(); err != nil {
		return Gap{}, fmt.Errorf("dmera: %s: %w", d.Name(), err)
	}
	// First the count and then the era: the next one begins after what was counted.
	if now.Count, err = discards(d.info.Dev()); err != nil {
		return Gap{}, fmt.Errorf("dmera: %s: %w", d.Name(), err)
	}
	st, err := d.Status(ctx)
	if err != nil {
		return Gap{}, err
	}
	now, changed := was.next(now, st)
	if !changed {
		return now.gap(), nil
	}
	if err := replace(path, now); err != nil {
		return Gap{}, fmt.Errorf("dmera: %s: its gap, with %d discards counted, cannot be written down: %w", d.Name(), now.Count, err)
	}
	return now.gap(), nil
}

// next returns the record that follows r, and whether it differs. now has the activation
// and its count of discards, st the status that was read after the count.
func (r gapRecord) next(now gapRecord, st Status) (gapRecord, bool) {
	seen := uint64(0)
	if r.Boot == now.Boot && r.DiskSeq == now.DiskSeq && r.Number == now.Number && now.DiskSeq != 0 {
		seen = r.Count
	}
	if st.DiscardsDisabled && now.Count == seen && r.End != notEnded {
		return r, false
	}
	// Writes past the device came before it was up, and so before this era ends.
	now.End, now.Past = st.Era+1, r.End == notEnded
	return now, true
}

// NotePast writes down, durably, that the data of an era device may be written to while
// the device is not up. Its metadata is on the device at path meta. Marks from before the
// next activation are lost then.
//
// Metadata that is all zero needs no note. When the metadata cannot be read, because its
// disk is missing or fails, the note holds for any metadata and for all eras so far.
func NotePast(name, meta string, o Options) error {
	s, err := readMetadata(meta)
	if errors.Is(err, era.ErrNotEra) {
		return nil // no mark counts from it
	}
	// The next activation ends the era that the metadata is in.
	now := gapRecord{Version: recordVersion, Identity: s.Identity, End: s.Era + 1, Past: true}
	if err != nil {
		now.End = notEnded
	}
	path := gapPath(o.withDefaults().StateDir, name)
	was, err := readGap(path, now.Identity)
	if err == nil && (!was.Past || was.End != now.End) {
		err = replace(path, now)
	}
	if err != nil {
		return fmt.Errorf("dmera: %s: it is not up, and that cannot be written down: %w", name, err)
	}
	return nil
}

// readMetadata returns the superblock of metadata that the kernel does not use. The
// device of a pulled disk may still be there, with size 0: that is not ErrNotEra.
func readMetadata(path string) (era.Superblock, error) {
	dev, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return era.Superblock{}, err
	}
	defer dev.Close()
	if dev.Size() == 0 {
		return era.Superblock{}, fmt.Errorf("%s: it is empty", path)
	}
	md, err := era.Open(dev, dev.Size())
	if err != nil {
		return era.Superblock{}, err
	}
	return md.Superblock(), nil
}

func gapPath(stateDir, name string) string {
	return filepath.Join(stateDir, "era", strings.ReplaceAll(name, "/", "_")+".gap.json")
}

// readGap returns the record for metadata of that identity, the zero value when there is
// none. A record without an identity holds for any metadata.
func readGap(path string, id era.Identity) (was gapRecord, err error) {
	err = atomicfile.ReadJSON(path, &was)
	if errors.Is(err, fs.ErrNotExist) {
		return was, nil
	}
	if err == nil && was.Version != recordVersion {
		err = fmt.Errorf("%s: version %d, this program knows %d", path, was.Version, recordVersion)
	}
	if err != nil {
		return was, err
	}
	if was.Identity != id && was.Identity != (era.Identity{}) {
		return gapRecord{}, nil
	}
	return was, nil
}

// activation tells this life of the device in the kernel from every other; diskseq
// is 0 before Linux 5.15, where it does not.
func (d *Device) activation() (boot string, diskseq uint64, err error) {
	if boot, err = sysfs.BootID(); err != nil {
		return "", 0, err
	}
	diskseq, err = sysfs.Uint(filepath.Join(d.info.Dev().Dir(), "diskseq"))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return boot, diskseq, err
}
