// Package dmthin finds the pools of dm-thin that are in use, and reads their metadata while
// they are.
//
// For most uses, call Find with the path of a pool's device or of a thin volume, then Hold on the
// pool, read the view, and Close it.
//
// The package owns the tables, status lines and messages of the targets "thin-pool" and "thin"
// (drivers/md/dm-thin.c of Linux 6.1 to 6.12), and the ownership of the one metadata snapshot that
// a pool can hold. The format of the metadata is package format/thin's. It makes and changes no
// pool. A Pool may be used by several goroutines at once, a Held by one.
//
// # Whose a metadata snapshot is
//
// The kernel does not tell who has taken it, and holds it until it is released, over reboots as
// well; as long as it is there, the pool frees no metadata. Before a process of ours takes one, it
// locks the file RunDir/thin/NAME.lock, which the kernel unlocks when the process dies, and writes
// StateDir/thin/NAME.json. The file says at last in which block the snapshot is, and what that
// holds. A snapshot that is found when the lock is free is ours, and released, when the
// file says so. A file that names no block yet is of a process that died between: then the snapshot
// counts as ours, once. Any other one stays, and is refused.
package dmthin

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"tidemark/linux/dm"
	"tidemark/linux/sysfs"
)

var (
	// ErrNotPool says that a device is neither a thin pool in use nor a volume of one.
	ErrNotPool = errors.New("neither a thin pool in use nor a volume of one")
	// ErrHeld says that a living process, or another program, holds the metadata snapshot.
	ErrHeld = errors.New("the metadata snapshot of the pool is held")
	// ErrFailed says that the kernel has given a pool up, or that it is read-only, so that no
	// metadata snapshot can be taken.
	ErrFailed = errors.New("the pool does not accept changes")
)

// Pool is a thin pool in use.
type Pool struct {
	dm.Info
	Metadata, Data sysfs.Dev
	BlockSize      int64 // bytes
}

// Volume is a thin volume in use.
type Volume struct {
	dm.Info
	ID       uint32 // of the device in its pool
	Size     int64  // bytes
	External string // the device whose blocks show where none was written; "": they are zeros
}

// Table returns the table of another device of the pool that is as large as the volume, such as
// a snapshot of it, by the device's number in the pool.
func (v Volume) Table(pool Pool, id uint32) []dm.Target {
	t := dm.Target{Len: uint64(v.Size / dm.SectorSize), Type: "thin", Params: fmt.Sprintf("%s %d", pool.Dev(), id)}
	if v.External != "" {
		t.Params += " " + v.External
	}
	return []dm.Target{t}
}

// Find returns the pool that the device at path, or of that name, is or belongs to, and the volume
// where it is one. A device that is nothing but the whole of a pool, as LVM puts above
// one, is the pool. The error wraps ErrNotPool.
func Find(ctl *dm.Control, path string) (Pool, *Volume, error) {
	info, err := ctl.Resolve(path)
	if errors.Is(err, dm.ErrNotFound) {
		return Pool{}, nil, fmt.Errorf("dmthin: %s: %w", path, ErrNotPool)
	}
	if err != nil {
		return Pool{}, nil, err
	}
	target, info, err := single(ctl, info.Name)
	if err != nil {
		return Pool{}, nil, err
	}
	var volume *Volume
	words := strings.Fields(target.Params)
	switch {
	case target.Type == "thin-pool":
		pool, err := parsePool(info, target)
		return pool, nil, err
	case target.Type == "thin" && (len(words) == 2 || len(words) == 3):
		id, err := strconv.ParseUint(words[1], 10, 24)
		if err != nil {
			return Pool{}, nil, odd(info, target)
		}
		volume = &Volume{Info: info, ID: uint32(id), Size: int64(target.Len) * dm.SectorSize}
		if len(words) == 3 {
			volume.External = words[2]
		}
	case target.Type == "linear" && len(words) == 2 && words[1] == "0":
	default:
		return Pool{}, nil, fmt.Errorf("dmthin: %s: %w: its target is %q", path, ErrNotPool, target.Type)
	}
	below, err := sysfs.ParseDev(words[0])
	if err != nil {
		return Pool{}, nil, odd(info, target)
	}
	pool, err := at(ctl, below)
	if errors.Is(err, ErrNotPool) || errors.Is(err, dm.ErrNotFound) {
		err = fmt.Errorf("dmthin: %s: %w", path, ErrNotPool)
	}
	return pool, volume, err
}

// at returns the pool that is the device of that number.
func at(ctl *dm.Control, dev sysfs.Dev) (Pool, error) {
	info, err := ctl.Find(dev.Major, dev.Minor)
	if err != nil {
		return Pool{}, err
	}
	target, info, err := single(ctl, info.Name)
	if err != nil {
		return Pool{}, err
	}
	if target.Type != "thin-pool" {
		return Pool{}, fmt.Errorf("dmthin: %s: %w: its target is %q", info.Name, ErrNotPool, target.Type)
	}
	return parsePool(info, target)
}

// single returns the one target of a device.
func single(ctl *dm.Control, name string) (dm.Target, dm.Info, error) {
	table, info, err := ctl.Table(name)
	if err == nil && len(table) != 1 {
		err = fmt.Errorf("dmthin: %s: %w: it has %d targets", name, ErrNotPool, len(table))
	}
	if err != nil {
		return dm.Target{}, info, err
	}
	return table[0], info, nil
}

func odd(info dm.Info, t dm.Target) error {
	return fmt.Errorf("dmthin: %s: a table that is not understood: %q", info.Name, t.String())
}

// parsePool reads "METADATA DATA BLOCK LOW-WATER [N FEATURE...]", the devices as numbers.
func parsePool(info dm.Info, t dm.Target) (Pool, error) {
	w := strings.Fields(t.Params)
	if len(w) < 4 {
		return Pool{}, odd(info, t)
	}
	metadata, err1 := sysfs.ParseDev(w[0])
	data, err2 := sysfs.ParseDev(w[1])
	block, err3 := strconv.ParseUint(w[2], 10, 32)
	if errors.Join(err1, err2, err3) != nil || block == 0 {
		return Pool{}, odd(info, t)
	}
	return Pool{Info: info, Metadata: metadata, Data: data, BlockSize: int64(block) * dm.SectorSize}, nil
}

// Status is how a pool is.
type Status struct {
	Transaction uint64
	Held        uint64 // block of the metadata snapshot; 0: none is held
	Mode        string // "rw", "ro" or "out_of_data_space"
	NeedsCheck  bool

	UsedMetadata, TotalMetadata uint64 // metadata blocks
	UsedData, TotalData         uint64 // data blocks
}

// Status asks the kernel how a pool is. The error wraps ErrFailed for one that has failed.
func (p Pool) Status(ctl *dm.Control) (Status, error) {
	status, _, err := ctl.Status(p.Name, dm.StatusOptions{})
	if err != nil {
		return Status{}, err
	}
	if len(status) != 1 || status[0].Type != "thin-pool" {
		return Status{}, fmt.Errorf("dmthin: %s: %w any more", p.Name, ErrNotPool)
	}
	return parseStatus(p.Info, status[0].Params)
}

// parseStatus reads "TRANSACTION USED/TOTAL USED/TOTAL HELD MODE …", HELD being "-" for none.
func parseStatus(info dm.Info, params string) (s Status, err error) {
	w := strings.Fields(params)
	if len(w) > 0 && (w[0] == "Fail" || w[0] == "Error") {
		return s, fmt.Errorf("dmthin: %s: %w: its status is %q", info.Name, ErrFailed, w[0])
	}
	if len(w) < 5 {
		return s, fmt.Errorf("dmthin: %s: a status that is not understood: %q", info.Name, params)
	}
	s.Transaction, err = strconv.ParseUint(w[0], 10, 64)
	if err == nil && w[3] != "-" {
		s.Held, err = strconv.ParseUint(w[3], 10, 63)
	}
	if err == nil {
		s.UsedMetadata, s.TotalMetadata, err = fraction(w[1])
	}
	if err == nil {
		s.UsedData, s.TotalData, err = fraction(w[2])
	}
	if err != nil {
		return s, fmt.Errorf("dmthin: %s: a status that is not understood: %q", info.Name, params)
	}
	s.Mode = w[4]
	for _, word := range w[5:] {
		s.NeedsCheck = s.NeedsCheck || word == "needs_check"
	}
	return s, nil
}

// fraction reads "used/total".
func fraction(text string) (used, total uint64, err error) {
	u, t, _ := strings.Cut(text, "/")
	used, err = strconv.ParseUint(u, 10, 64)
	if err == nil {
		total, err = strconv.ParseUint(t, 10, 64)
	}
	return used, total, err
}
