// Package dmsnap tells which dm-snapshot devices there are: their origins, their stores, and
// how they are.
//
// For most uses, call [List], or [StoreUnused] and [OriginUnused] before a store is applied to
// an origin.
//
// The package owns the tables and status lines of the targets "snapshot", "snapshot-merge" and
// "snapshot-origin" (drivers/md/dm-snap.c of Linux 6.1 to 6.12). It changes nothing. A table or
// status that it does not know is an error. Functions may be called by several goroutines
// at once.
package dmsnap

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"tidemark/linux/dm"
	"tidemark/linux/sysfs"
)

// ErrLive says that the kernel has a store or an origin in use.
var ErrLive = errors.New("in use by a live snapshot")

// Snapshot is a device of one target "snapshot" or "snapshot-merge".
type Snapshot struct {
	dm.Info
	// Merge: the device is the origin's, and the kernel brings the store back to it.
	Merge         bool
	Length        int64  // bytes
	Origin, Store dm.Dev // what lies below; writes to Origin itself are not seen
	Persistent    bool   // the store outlives the device
	ChunkSize     int64  // bytes
	Features      string // further words of the table, such as "discard_passdown_origin"; "": none
}

// Origin is a device of one target "snapshot-origin": what is written through it is copied
// to the stores of all snapshots of Below first.
type Origin struct {
	dm.Info
	Length int64 // bytes
	Below  dm.Dev
}

// Usage is how full a store is.
type Usage struct {
	State           State
	Used, Total     int64 // bytes; of State Valid or Overflow only, 0 else
	MetadataPortion int64 // bytes of Used
}

// State is how the kernel sees a snapshot.
type State string

// The states of a snapshot, as its status line has them.
const (
	Valid       State = "valid"        // shown as the usage
	Invalid     State = "Invalid"      // the store was full or failed; for good
	Overflow    State = "Overflow"     // a write to the snapshot itself did not fit
	MergeFailed State = "Merge failed" // see the kernel's log
	Unknown     State = "Unknown"      // a store that cannot tell
)

// List returns all snapshots and origins, merging ones among the snapshots.
func List(ctl *dm.Control) ([]Snapshot, []Origin, error) {
	all, err := ctl.List()
	if err != nil {
		return nil, nil, err
	}
	var snapshots []Snapshot
	var origins []Origin
	for _, e := range all {
		table, info, err := ctl.Table(e.Name)
		if errors.Is(err, dm.ErrNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, nil, err
		}
		for _, t := range table {
			switch t.Type {
			case "snapshot", "snapshot-merge":
				s, err := parseSnapshot(info, t)
				if err != nil {
					return nil, nil, err
				}
				snapshots = append(snapshots, s)
			case "snapshot-origin":
				o, err := parseOrigin(info, t)
				if err != nil {
					return nil, nil, err
				}
				origins = append(origins, o)
			}
		}
	}
	return snapshots, origins, nil
}

// Get returns the snapshot that the device of that name is.
func Get(ctl *dm.Control, name string) (Snapshot, error) {
	table, info, err := ctl.Table(name)
	if err != nil {
		return Snapshot{}, err
	}
	if len(table) != 1 || table[0].Type != "snapshot" && table[0].Type != "snapshot-merge" {
		return Snapshot{}, fmt.Errorf("dmsnap: %s: it is no snapshot", name)
	}
	return parseSnapshot(info, table[0])
}

func odd(info dm.Info, t dm.Target) error {
	return fmt.Errorf("dmsnap: %s: a table that is not understood: %q", info.Name, t.String())
}

// parseSnapshot reads "ORIGIN STORE P|PO|N CHUNK [N FEATURE...]", the devices as numbers.
func parseSnapshot(info dm.Info, t dm.Target) (Snapshot, error) {
	w := strings.Fields(t.Params)
	if len(w) < 4 {
		return Snapshot{}, odd(info, t)
	}
	origin, err1 := sysfs.ParseDev(w[0])
	store, err2 := sysfs.ParseDev(w[1])
	chunk, err3 := strconv.ParseUint(w[3], 10, 32)
	if errors.Join(err1, err2, err3) != nil || w[2] != "P" && w[2] != "PO" && w[2] != "N" {
		return Snapshot{}, odd(info, t)
	}
	s := Snapshot{
		Info: info, Merge: t.Type == "snapshot-merge", Length: int64(t.Len) * dm.SectorSize,
		Origin: origin, Store: store, Persistent: w[2] != "N", ChunkSize: int64(chunk) * dm.SectorSize,
	}
	if rest := w[4:]; len(rest) > 0 && rest[0] != "0" {
		s.Features = strings.Join(rest[1:], " ")
	}
	return s, nil
}

func parseOrigin(info dm.Info, t dm.Target) (Origin, error) {
	below, err := sysfs.ParseDev(strings.TrimSpace(t.Params))
	if err != nil {
		return Origin{}, odd(info, t)
	}
	return Origin{Info: info, Length: int64(t.Len) * dm.SectorSize, Below: below}, nil
}

// Usage asks the kernel how full the store of a snapshot is.
func (s Snapshot) Usage(ctl *dm.Control) (Usage, error) {
	status, _, err := ctl.Status(s.Name, dm.StatusOptions{})
	if err != nil {
		return Usage{}, err
	}
	if len(status) != 1 || status[0].Type != "snapshot" && status[0].Type != "snapshot-merge" {
		return Usage{}, fmt.Errorf("dmsnap: %s: it is no snapshot any more", s.Name)
	}
	return parseUsage(s.Info, status[0])
}

// parseUsage reads "USED/TOTAL METADATA" in sectors, or a word.
func parseUsage(info dm.Info, t dm.Target) (Usage, error) {
	params := strings.TrimSpace(t.Params)
	switch State(params) {
	case Invalid, Overflow, MergeFailed, Unknown:
		return Usage{State: State(params)}, nil
	}
	used, rest, ok1 := strings.Cut(params, "/")
	total, meta, ok2 := strings.Cut(rest, " ")
	n := [3]int64{}
	var errs []error
	for i, word := range []string{used, total, meta} {
		v, err := strconv.ParseUint(word, 10, 54)
		n[i], errs = int64(v)*dm.SectorSize, append(errs, err)
	}
	if !ok1 || !ok2 || errors.Join(errs...) != nil {
		return Usage{}, fmt.Errorf("dmsnap: %s: a status that is not understood: %q", info.Name, params)
	}
	return Usage{State: Valid, Used: n[0], Total: n[1], MetadataPortion: n[2]}, nil
}
