// Package transaction changes an image or a device so that, whatever crashes, it holds
// the old content or the new.
//
// For most uses, Recover what an earlier run left, Begin a Txn, hand it places with Data
// or Zero, and call Seal, Publish and Finish in this order, or Abort. Disk is a target on
// this machine, and Dir the folder beside it in which the journal waits (package
// format/redo). The package knows nothing of mirrors, streams or checksums of blocks: an
// owner that keeps something in step with the target does so in Steps.
//
// # Why the target is old or new
//
// Until a change is published, the target is only read, and room in it is reserved. The
// journal, the file "journal" of the folder, takes all of the change.
//
//  1. Seal completes the journal and syncs it. A crash before the next step leaves the
//     old target. The next Recover removes the journal.
//  2. Publish renames the journal to "journal.ready" and syncs the folder. This is the
//     commit: from now on the change will be finished.
//  3. Finish writes the journal to the target, syncs the target, has the owner do the
//     same with what it keeps, and removes the journal. A crash on the way leaves
//     "journal.ready". The next Recover writes all of it again, from the start. The
//     result is the same, however far the first attempt came.
//
// Recover syncs the folder before it writes: a process may have died between the rename
// and its sync, and a power cut must not bring the old name back when the target is half
// written. It reads all of the journal, and holds it against its checksums, before it
// writes the first byte.
//
// A sync that failed is never tried again. The kernel reports lost writes once, and a
// second sync that succeeds says nothing of them. For the same reason Recover reads from
// the disk, and not from memory: after a failed write memory shows what the disk has not
// got.
//
// # Which target it is
//
// A journal would spoil a target that somebody has put in the place of the right one.
// It tells two things of its target. The first says what the target is: of an image the
// inode and the time of birth, of a device its sequence number in this boot. The second
// changes with each write: the size and the times of an image; the boot and the sectors
// that were written of a device. See Stamp and Policy.
//
// # Past the page cache
//
// A journal is brought to the target in one of two ways. Where all of its places are
// multiples of 4096 bytes and long, and the target can, all of it goes past the page cache.
// Otherwise all of it goes through the page cache. The two are never mixed in one
// journal: the kernel does not keep them in step within one folio. An image on a
// filesystem that can share blocks (XFS, Btrfs) shares those of the journal instead.
//
// A Txn may be used by several goroutines at once where its methods say so; a folder
// belongs to one Txn, or one Recover, at a time.
package transaction

import (
	"errors"
	"io"

	"tidemark/extent"
)

// ReadyFile is the file of a folder that is a committed change; it may be read, but not
// written, without locking the folder.
const ReadyFile = "journal.ready"

const journalFile = "journal"

var (
	// ErrChanged says that another program changed the target.
	ErrChanged = errors.New("target was changed by someone else")
	// ErrOther says that a journal was made for another target than this one.
	ErrOther = errors.New("it is not the target that the change was made for")
	// ErrOtherOwner says that a journal belongs to another owner: to a mirror, to a
	// stream that was being applied, or to another mirror.
	ErrOtherOwner = errors.New("the journal that waits for this target is of another kind, or of another mirror")
)

// Folder is the place beside a target where its files lie. What Rename and Remove did,
// and which files exist, survives a power cut once Sync has returned. It is an interface
// so that tests can have one that forgets what was not synced.
type Folder interface {
	// Open opens a file for reading and writing. Without create a missing file is
	// fs.ErrNotExist; with create the file is made, or emptied.
	Open(name string, create bool) (File, error)
	Rename(from, to string) error
	Remove(name string) error
	Sync() error
}

// File is one open file of a Folder. What was written survives a power cut once Sync has
// returned.
type File interface {
	io.ReaderAt
	io.WriterAt
	Size() (int64, error) // bytes
	Sync() error
	Close() error
}

// Writer takes what a journal holds.
type Writer interface {
	io.WriterAt
	// Zero makes an extent read as zeros.
	Zero(e extent.Extent) error
}

// Target is what is changed.
type Target interface {
	io.ReaderAt
	Writer
	// Reserve makes room for writing an extent without changing what it reads as,
	// where the target can say that beforehand.
	Reserve(e extent.Extent) error
	// Resize makes the target hold size bytes, as far as it has a size of its own:
	// a device only has to be large enough.
	Resize(size int64) error
	Sync() error
	// Stamp tells what the target is and how it looks now.
	Stamp() (Stamp, error)
}

// Uncached is a Target that can be written to past its page cache.
type Uncached interface {
	// Uncached returns a way to do so that is closed before the target is synced.
	Uncached() (UncachedWriter, error)
}

// UncachedWriter takes offsets, lengths and addresses that are multiples of 4096. It
// answers EINVAL where the target wants larger multiples.
type UncachedWriter interface {
	Writer
	io.Closer
}

// Cloner is a Target that can share blocks with a journal instead of copying them.
type Cloner interface {
	// Clone makes e the content that f has at byte at, all multiples of 4096. It
	// reports false, and has changed nothing, where that cannot be done.
	Clone(f File, at int64, e extent.Extent) bool
}

// Rereader is a Target or File whose reads may come from memory.
type Rereader interface {
	// Reread makes reads come from the disk from now on. Its error may be that of a
	// write that an earlier run lost.
	Reread() error
}

// Reread has those of its arguments that are Rereaders read from their disks. Errors are
// of writes that an earlier run lost: what these were to bring is written again, or found
// missing now.
func Reread(of ...any) {
	for _, x := range of {
		if r, ok := x.(Rereader); ok {
			_ = r.Reread() // see above
		}
	}
}

// Steps are what the owner of a target does in step with a journal that is brought to
// it. All of them may be nil. A crash may repeat any of them, from the first one on.
type Steps struct {
	// Check sees the blob of a journal that waits, before anything is written, and
	// refuses one that is not its own. done says that the owner knows of the change
	// already, so that the journal has only to be forgotten. Without Check a journal
	// with a blob is refused.
	Check func(after int64, blob []byte) (done bool, err error)
	// Resized is called when the target has its new size, in bytes.
	Resized func(size int64) error
	// Wrote is called for each piece that is in the target, before it is synced, by
	// several goroutines at once. data is nil for zeros, and good until Wrote returns.
	Wrote func(e extent.Extent, data []byte) error
	// Synced is called when the target is synced, and before the journal is
	// forgotten. looks is the zero Stamp where somebody else may have written to the
	// target and no stamp would show it.
	Synced func(looks Stamp) error
	// Progress is told how many bytes the target has got, and will get. It is called
	// by one goroutine at a time.
	Progress func(done, total int64)
}

// Image is the Kind of a regular file, Device that of a block device.
const (
	Image  = "image"
	Device = "device"
)
