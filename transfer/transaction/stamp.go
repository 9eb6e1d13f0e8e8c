package transaction

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"tidemark/format/redo"
)

// Stamp tells what a target is and how it looks. Times are nanoseconds since 1970, 0
// where they are not known.
type Stamp struct {
	Kind string // Image or Device
	Size int64  // bytes
	// Of an image. A write changes MTime and CTime; MTime can be set back, CTime
	// cannot. BTime and Inode tell a file from the one that had its name before.
	MTime, CTime, BTime int64
	Inode               uint64
	// Of a device whose writes the kernel counts: the boot, the sequence number of
	// the disk in it, and the sectors that were written or discarded.
	BootID  string
	DiskSeq uint64
	Written uint64
}

// Telling reports whether a stamp changes when somebody writes to the target.
func (s Stamp) Telling() bool { return s.Kind == Image || s.MTime != 0 || s.BootID != "" }

// sameFile reports whether two stamps may be of one file. The inode number changes when
// some filesystems (FAT) are mounted anew, but then the time of birth stays.
func (s Stamp) sameFile(now Stamp) bool {
	if s.BTime != 0 && now.BTime != 0 {
		return s.BTime == now.BTime
	}
	return s.Inode == 0 || s.Inode == now.Inode
}

// Differs tells in words why a target that looked like s once, and like now today, may
// have been written to since; "" when it was not. What an older stamp does not have is
// not compared.
func (s Stamp) Differs(now Stamp) string {
	switch {
	case !now.Telling():
		return "the kernel does not count what is written to it (queue/iostats may be 0), so that each run has to look"
	case s == now:
		return ""
	case !s.Telling():
		return "the last run was cut off, or could not tell how it left it, or it was found to be damaged"
	case s.Size != now.Size:
		return fmt.Sprintf("its size is %d bytes, it was %d", now.Size, s.Size)
	case now.Kind == Device:
		return s.differsAsDevice(now)
	case s.MTime != now.MTime:
		return "it was modified since the last run"
	case !s.sameFile(now):
		return "another file is in its place since the last run"
	case s.CTime != 0 && s.CTime != now.CTime:
		return "it was changed since the last run, though it shows the same time of modification"
	}
	return ""
}

func (s Stamp) differsAsDevice(now Stamp) string {
	switch {
	case s.BootID != now.BootID:
		return "the machine was booted since the last run"
	case s.DiskSeq != now.DiskSeq:
		return "the device was replaced or plugged in again since the last run"
	case s.Written != now.Written:
		return fmt.Sprintf("%d sectors were written to it since the last run", now.Written-s.Written)
	}
	return ""
}

// moved is Differs for two stamps of one run: what neither of them can tell is no
// change.
func (s Stamp) moved(now Stamp) string {
	if s.Size == now.Size && (!s.Telling() || !now.Telling()) {
		return ""
	}
	return s.Differs(now)
}

// The parts of the digest that a journal has of its target.
const (
	digestKind  = 16 // 1: image, 2: device; before it two numbers that say what it is
	digestLooks = 17 // what changes with each write; zeros: that cannot be told
)

// digest is what a journal says of its target.
func (s Stamp) digest() (d redo.Digest) {
	binary.LittleEndian.PutUint64(d[:], s.Inode)
	binary.LittleEndian.PutUint64(d[8:], uint64(s.BTime))
	d[digestKind] = 1
	if s.Kind == Device {
		d[digestKind] = 2
	}
	if s.Kind == Device && s.DiskSeq == 0 { // not counted, or before Linux 5.15
		return d
	}
	sum := sha256.Sum256(fmt.Append(nil, s.Size, s.MTime, s.CTime, s.BootID, s.DiskSeq, s.Written))
	copy(d[digestLooks:], sum[:])
	return d
}

// isFor reports whether a journal with digest d may be for the target that looks like s
// now, and whether nobody has written to the target since. What a device is cannot be
// told after a reboot: the name of the folder, which is that of the device, vouches.
func (s Stamp) isFor(d redo.Digest) (same, untouched bool) {
	now := s.digest()
	then := Stamp{Inode: binary.LittleEndian.Uint64(d[:]), BTime: int64(binary.LittleEndian.Uint64(d[8:]))}
	same = d[digestKind] == now[digestKind] && (s.Kind == Device || then.sameFile(s))
	looks := [len(d) - digestLooks]byte(now[digestLooks:])
	return same, same && looks != [len(looks)]byte{} && looks == [len(looks)]byte(d[digestLooks:])
}

// clock is a Folder that can tell the time of a target's filesystem.
type clock interface {
	// Now returns the time that a write to the target would leave on it now, in
	// nanoseconds since 1970, and false where that cannot be told.
	Now(target Target) (int64, bool)
}

const (
	// clockLimit is how long a filesystem's clock may take to move on: FAT has times
	// of two seconds.
	clockLimit = 2500 * time.Millisecond
	clockStep  = 50 * time.Millisecond
)

// Look returns how a target looks. trusted says that every write to it after Look has
// returned changes that stamp. Times have the steps of the filesystem's clock, and a write
// within the step of the stamp would leave the same times. Look therefore waits until that
// clock has moved on, 2.5 seconds at most and not longer than ctx. The clock is that of the
// filesystem, which may be on another machine.
func Look(ctx context.Context, target Target, folder Folder) (s Stamp, trusted bool, err error) {
	s, err = target.Stamp()
	if err != nil || s.Kind != Image {
		return s, s.Telling(), err
	}
	c, ok := folder.(clock)
	if !ok {
		return s, false, nil
	}
	changed := s.CTime // MTime may be in the future, because somebody has set it
	if changed == 0 {
		changed = s.MTime
	}
	ctx, cancel := context.WithTimeout(ctx, clockLimit)
	defer cancel()
	for step := time.Millisecond; ; step = min(2*step, clockStep) {
		now, ok := c.Now(target)
		if !ok {
			return s, false, nil
		}
		if now > changed {
			return s, true, nil
		}
		select {
		case <-time.After(step):
		case <-ctx.Done():
			return s, false, nil
		}
	}
}
