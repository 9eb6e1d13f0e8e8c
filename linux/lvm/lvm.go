// Package lvm asks and tells LVM about logical volumes, through lvm2's own commands.
//
// For most uses, call [Find] with a name ("VG/LV") or the path of a device, or [List] with
// the name of a volume group. [Activate], [Deactivate], [CreateThinSnapshot],
// [CreateSnapshot], [Extend] and [Remove] change one volume. [Detach] takes a volume and a snapshot of it out of use, with devices
// of our own for what they consist of, so that a store can be applied.
//
// The package owns the programs' arguments and the reading of their reports (lvs(8) with
// --reportformat json, as lvm2 2.03 writes it). It refuses a report that it does not know,
// and a name that fits no volume or several. Locks and metadata are lvm2's own, and so is its
// configuration. The package holds no state; its functions may be called by several
// goroutines at once.
package lvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// Errors that callers act on.
var (
	// ErrMissing says that lvm2 is not installed.
	ErrMissing = errors.New("LVM's commands are missing: install lvm2")
	// ErrNotFound says that there is no such logical volume.
	ErrNotFound = errors.New("no such logical volume")
	// ErrRefused says that something was not done because data could be lost. Nothing
	// was changed.
	ErrRefused = errors.New("refused")
	// ErrInUse says that a volume is mounted or open. Nothing was changed.
	ErrInUse = errors.New("in use")
	// ErrHalfDone says that a store was applied to a volume in part.
	ErrHalfDone = errors.New("neither old nor new")
)

// Activate makes a volume's device appear, with those of its snapshots, also when the volume
// is flagged to be skipped.
func Activate(ctx context.Context, v Volume) error {
	return change(ctx, "lvchange", "--activate", "y", "--ignoreactivationskip", "--yes", v.FullName())
}

// Deactivate makes a volume's device disappear, with those of its snapshots. LVM refuses when
// it is open.
func Deactivate(ctx context.Context, v Volume) error {
	return change(ctx, "lvchange", "--activate", "n", v.FullName())
}

// Tag is the tag of volumes that CreateThinSnapshot has made.
const Tag = "tidemark"

// CreateThinSnapshot makes a snapshot of a thin volume in the same pool, called name, and returns
// it. It is active, read-only, has the tag Tag, and is left alone when the machine boots. LVM
// freezes the filesystem that lies on the volume meanwhile.
func CreateThinSnapshot(ctx context.Context, v Volume, name string) (Volume, error) {
	if !v.Thin() {
		return Volume{}, fmt.Errorf("lvm: %s: %w: it is not thin", v.FullName(), ErrRefused)
	}
	err := change(ctx, "lvcreate", "--snapshot", "--permission", "r", "--setactivationskip", "y", "--ignoreactivationskip",
		"--addtag", Tag, "--name", name, v.FullName())
	if err != nil {
		return Volume{}, err
	}
	return Find(ctx, v.VG+"/"+name)
}

// SnapshotOptions say how a snapshot with a store of its own is to be. Size is required.
type SnapshotOptions struct {
	Size     int64 // of the store in bytes; LVM rounds it up to whole extents of the group
	Chunk    int64 // bytes; 0 leaves it to LVM
	Writable bool
	Tag      string // "" is none
}

// CreateSnapshot makes a snapshot of a volume, called name, whose store is in the same group. It is
// active. LVM freezes the filesystem that lies on the volume meanwhile.
func CreateSnapshot(ctx context.Context, v Volume, name string, o SnapshotOptions) error {
	args := []string{"--snapshot", "--permission", map[bool]string{true: "rw", false: "r"}[o.Writable], "--name", name, "--size", fmt.Sprintf("%db", o.Size)}
	if o.Chunk > 0 {
		args = append(args, "--chunksize", fmt.Sprintf("%db", o.Chunk))
	}
	if o.Tag != "" {
		args = append(args, "--addtag", o.Tag)
	}
	return change(ctx, "lvcreate", append(args, v.FullName())...)
}

// Free returns how many bytes of the group of a volume no volume has.
func Free(ctx context.Context, v Volume) (int64, error) {
	out, err := run(ctx, "lvs", "--noheadings", "--units", "b", "--nosuffix", "--options", "vg_free", "--", v.FullName())
	if err != nil {
		return 0, err
	}
	free, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("lvm: lvs: a report that is not understood: %w", err)
	}
	return free, nil
}

// Extend makes a volume larger, to size bytes, rounded up to whole extents of the group; of a
// snapshot it is the store that grows.
func Extend(ctx context.Context, v Volume, size int64) error {
	return change(ctx, "lvextend", "--size", fmt.Sprintf("%db", size), v.FullName())
}

// Remove removes a volume. LVM refuses when it is open.
func Remove(ctx context.Context, v Volume) error {
	return change(ctx, "lvremove", "--yes", v.FullName())
}

// change runs a command that says nothing of interest when it succeeds.
func change(ctx context.Context, program string, args ...string) error {
	_, err := run(ctx, program, args...)
	return err
}

// run runs one of lvm2's commands and returns what it prints. The command is not killed when
// ctx ends, for it may be half-way through a change of metadata; it is not begun then.
func run(ctx context.Context, program string, args ...string) ([]byte, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", program, err)
	}
	cmd := exec.Command(program, args...)
	// Messages in English, and none about descriptors that others have left open.
	cmd.Env = append(os.Environ(), "LC_ALL=C", "LVM_SUPPRESS_FD_WARNINGS=1")
	// A Ctrl-C is for this program, which then has more to ask of LVM. When this program is
	// killed, a command that waits for LVM's lock gives up (flock in lib/locking of lvm2):
	// later it could undo what the next run has done. One that has the lock goes on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGINT}
	runtime.LockOSThread() // whose death the command is told of
	defer runtime.UnlockOSThread()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, ErrMissing
	}
	if err == nil {
		return out, nil
	}
	said := strings.Join(strings.Fields(strings.ReplaceAll(stderr.String(), "\n", "; ")), " ")
	if said = strings.Trim(said, "; "); said == "" {
		said = err.Error()
	}
	return nil, &Error{Command: program, Said: said}
}

// Error is what a command of lvm2 said when it failed.
type Error struct {
	Command string // "lvchange"
	Said    string // on standard error, in one line
}

func (e *Error) Error() string { return "lvm: " + e.Command + ": " + e.Said }
