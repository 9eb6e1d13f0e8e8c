// Package bpf is the tracker of any live block device: eBPF programs in the kernel note
// what changes, with nothing to install and nothing to reboot.
//
// For most uses, open the device with package block, call [Open], then the methods of
// track.Tracker; [Attach] asks only, and starts nothing. [Start], [Stop] and [List] are
// what "tidemark track" does.
//
// A partition is a slice of its disk, and what is tracked is the disk. Which disk that
// is, is taken from the open descriptor of the source; a path is never asked again.
//
// This package owns when tracking begins and ends, and how far a bitmap can be trusted.
// The programs and bitmaps are those of package linux/bpf, the files of epochs those of
// package track/history. It refuses disks whose content can change without a trace in
// the block layer (DAX), and kernels without what the programs need. A Tracker may be
// used by several goroutines, and several processes may track one disk.
//
// # State
//
// All state lives in two places that a reboot empties, so none of it is synced:
//
//	<BPFFS>/tidemark/v1/…                programs, links, maps, bitmap_<generation>_<epoch>;
//	                                     v1-<hash> for another RunDir than the default
//	<RunDir>/track/lock                  taken to start and stop tracking
//	<RunDir>/track/<disk>/flip           taken to end an epoch
//	<RunDir>/track/<disk>/record.json    what is tracked, since when
//	<RunDir>/track/<disk>/…              see package track/history
//
// What outlives a reboot is what Save writes down, for Resume: see these.
//
// Locks are taken in the order lock, history, flip. Should RunDir outlive a reboot, the
// boot id in the record tells.
package bpf

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"

	"tidemark/linux/bpf"
)

// Kind is the kind of the tracker and of its marks.
const Kind = "bpf"

// DefaultRunDir is where the state of tracking lives by default.
const DefaultRunDir = "/run/tidemark"

var (
	// ErrNotTracked says that tracking is not on for a device.
	ErrNotTracked = errors.New("not tracked")
	// ErrNotSupported says that this kernel, or this disk, lacks something that the
	// tracker needs. It is the error of package linux/bpf.
	ErrNotSupported = bpf.ErrNotSupported
)

// Options tells where the state lives and how a disk is tracked. The zero value works.
type Options struct {
	RunDir string // DefaultRunDir when empty; a reboot must empty it
	BPFFS  string // /sys/fs/bpf when empty; mounted when nothing is
	// BlockSize is the granularity in bytes, a power of two from 4096 on; 0 chooses
	// 4096 for disks up to 1 TiB, more for larger ones. It only matters when tracking
	// starts; asking for another than the one in use is an error.
	BlockSize int64
	// Drain waits until no write is in flight on the source (for a filesystem: freeze
	// and thaw). It is called when tracking starts on a bio-based disk; without it, or
	// when it fails, the kernel's own count of I/O in flight is polled.
	Drain func(context.Context) error

	resuming *resuming // what Resume goes on with
}

// paths is where the state lives.
type paths struct {
	run   string // <RunDir>/track
	bpffs string
	pins  string // <BPFFS>/tidemark/v1, or v1-<which RunDir>
}

func (o Options) paths() paths {
	run, mnt := o.RunDir, o.BPFFS
	if run == "" {
		run = DefaultRunDir
	}
	if mnt == "" {
		mnt = bpf.DefaultFS
	}
	return paths{run: filepath.Join(run, "track"), bpffs: mnt, pins: filepath.Join(mnt, "tidemark", pinsOf(run))}
}

// pinsOf names the folder of the pins that belong to a run folder. Each has its own,
// so that the tracking of one is not swept away as rubbish by another.
func pinsOf(run string) string {
	if run = resolve(run); run == resolve(DefaultRunDir) {
		return "v1"
	}
	sum := sha256.Sum256([]byte(run))
	return "v1-" + hex.EncodeToString(sum[:8])
}

// resolve returns the absolute path without symbolic links, as far as it is there.
func resolve(path string) string {
	path, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	if real, err := filepath.EvalSymlinks(path); err == nil || path == "/" {
		return real
	}
	return filepath.Join(resolve(filepath.Dir(path)), filepath.Base(path))
}

const (
	recordFile = "record.json"
	flipLock   = "flip"
	pinPrefix  = "bitmap_" // a dot is not allowed in bpffs
)

func (p paths) lockFile() string                { return filepath.Join(p.run, "lock") }
func (p paths) disk(name string) string         { return filepath.Join(p.run, name) }
func (p paths) record(disk string) string       { return filepath.Join(p.run, disk, recordFile) }
func (p paths) pin(gen string, n uint64) string { return filepath.Join(p.pins, pinName(gen, n)) }

func pinName(gen string, epoch uint64) string { return fmt.Sprintf("%s%s_%d", pinPrefix, gen, epoch) }

// parsePin is the inverse of pinName.
func parsePin(name string) (gen string, epoch uint64, ok bool) {
	var digits string
	if n, _ := fmt.Sscanf(name, pinPrefix+"%16s_%d", &digits, &epoch); n != 2 || pinName(digits, epoch) != name {
		return "", 0, false
	}
	return digits, epoch, true
}
