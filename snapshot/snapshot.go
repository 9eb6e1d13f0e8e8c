// Package snapshot takes snapshots of devices of device-mapper while they are in use, several at
// one instant, kept by the kernel's own dm-snapshot.
//
// For most uses, call [Create], read the images at [Volume.Image], and call [Snapshot.Destroy].
// [List] finds those that other processes made, and [Repair] ends what a crash left.
// The program's main must begin with
//
//	reexec.Main(fsfreeze.Watchdog, dmhold.Holder, dmera.Step)
//
// The package owns the devices that it makes, the stores and their files, and the records of them
// in the state folder. It refuses devices that are not device-mapper's, whose tables cannot be
// loaded twice, or that LVM manages: LVM would change their tables without knowing of ours. A store
// that is full, or fails, ends the snapshot, and the origin does not notice. Commands of several
// processes wait for each other. A Snapshot is used by one goroutine at a time.
//
// # The devices
//
// For an origin X and a snapshot NAME, with X's own table T:
//
//	X+real       T; what X consists of
//	X+NAME+cow   where the store lies: extents of a file on X+real, a loop device, or a device
//	X+NAME+snap  snapshot X+real X+NAME+cow N, or P for a persistent one
//	X            snapshot-origin X+real, as long as there is a snapshot of X
//	X+NAME       the image: X+NAME+snap, with zeros where the store's own file lies
//
// An era device stays one, and its data gets the snapshot (era.go).
//
// Everything is made and loaded while X is in use. At the instant X is suspended, by which the
// kernel freezes the filesystem on it (but for Btrfs, which is left as a power cut would leave it)
// and waits for writes in flight; then X+NAME+snap is
// started and X resumed with its new table (package linux/dmhold), so that a crash at any moment
// leaves X with its old table or the new one, and running. A write to X that comes after waits until
// what it overwrites is in the store (drivers/md/dm-snap.c of Linux 6.1 to 6.12).
//
// # A store on the origin's own filesystem
//
// The file is allocated before the instant, at its full size: blocks that it gets later may hold what
// a deleted file had at the instant, and writes to the store pass below X, so that nobody would copy
// that. So it grows only into blocks that belonged to nobody then (grow.go). It is immutable as long as the snapshot lives, by
// which ext4 and XFS leave its extents where they are; other filesystems are refused. Its extents
// are cut to whole chunks. In the image they read as zeros. To trackers of X they count as changed
// when the snapshot is gone ([Volume.Inside]), because they changed without passing X.
//
// # Modes
//
// A snapshot whose volumes are tracked (Request.Track) can drop its data, and become incremental
// ([Snapshot.ToIncremental]): what changes since its instant goes on to be followed. Then the next
// one can be taken of the same volumes, with the list of what changed in between, in the format of
// package datto ([Snapshot.ToSnapshot]).
//
// # What survives
//
// A volatile snapshot ends with the boot. The file that a reboot leaves is removed by Repair, and by
// the next command. A persistent one is brought up by [Assemble], and [Snapshot.RollBack] puts its
// origins back to it. An incremental one has no store, and lasts as long as its tracker can vouch for
// its mark; so does what is told of the changes since a persistent one.
package snapshot

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"tidemark/extent"
	"tidemark/linux/lvm"
	"tidemark/linux/sysfs"
	"tidemark/track/bpf"
)

var (
	// ErrPlain says that a device is not device-mapper's, so that its table cannot be changed.
	ErrPlain = errors.New("not a device of device-mapper")
	// ErrLVM says that a device is a logical volume.
	ErrLVM = errors.New("a logical volume, whose table LVM changes without asking")
	// ErrUnfit says that a device has a table that cannot be loaded twice, or is not in order.
	ErrUnfit = errors.New("no snapshot can be taken of it")
	// ErrStore says that a store cannot be where it should.
	ErrStore = errors.New("the store cannot be there")
	// ErrNoRoom says that a filesystem has too little room for a store.
	ErrNoRoom = errors.New("too little room for the store")
	// ErrNotFound says that there is no snapshot of a name.
	ErrNotFound = errors.New("no such snapshot")
	// ErrExists says that there is a snapshot of that name.
	ErrExists = errors.New("there is a snapshot of that name")
	// ErrInUse says that an image is mounted or open.
	ErrInUse = errors.New("the image is in use")
	// ErrNotKept says that a snapshot of a device could not outlive a reboot.
	ErrNotKept = errors.New("it could not outlive a reboot")
	// ErrNoRollback says that an origin cannot be put back to a snapshot, or not now.
	ErrNoRollback = errors.New("no rollback")
)

// Options say where records are.
type Options struct {
	StateDir string // required
	// Track says where the tracking by eBPF is, to which a store's own blocks are told. Its
	// RunDir is required.
	Track bpf.Options
}

const (
	// DefaultChunk is what is copied to the store at the first write to any of it, in bytes.
	DefaultChunk = 8 << 10
	// MinStore is the smallest store, in bytes.
	MinStore = 4 << 20
	// DefaultReserve is what a store leaves of the room on a filesystem, in bytes, or a twentieth
	// of the filesystem where that is less.
	DefaultReserve = 64 << 20
	// defaultShare is the part of an origin that a store has room for, as a divisor.
	defaultShare = 10
)

// Request is what to take a snapshot of. Devices and MaxFreeze are required.
type Request struct {
	Name    string   // "": one that is free
	Devices []Device // all of one instant
	Chunk   int64    // bytes, a power of two from 4 KiB to 1 MiB; 0 is DefaultChunk
	// Reserve is what a store leaves of the room on a filesystem, in bytes; 0 is as DefaultReserve says.
	Reserve int64
	// Writable makes the images so. What is written to one goes to its store.
	Writable bool
	// Persistent has the snapshot outlive reboots. The caller answers for it that Assemble is
	// called at each boot, before anything on the devices is mounted. The filesystems have to be
	// ext4 or XFS. Stores of the kind File are refused, and the path of one of the kind Block must
	// be the same at each boot.
	Persistent bool
	// Transient has the snapshot end with this process: what is left of it then, the next
	// command removes.
	Transient bool
	// Track has what changes since the instant be followed, by eBPF: ToIncremental needs that.
	Track bool
	// Link, if not empty, is the path of a symbolic link to the image of the first device, which is
	// there as long as that.
	Link string
	// Labels are what the caller wants to find in Snapshot.Labels.
	Labels map[string]string
	// MaxFreeze bounds the time that users of the devices wait.
	MaxFreeze time.Duration
	// Instant, which may be nil, is called when nothing is in flight on any device: trackers are
	// cut there. It writes to no file. Its error ends the snapshot.
	Instant func(context.Context) error
}

// Device is an origin, and where its store is to be.
type Device struct {
	Path string    // or name in device-mapper
	Dev  sysfs.Dev // that it has to be; zero: whatever the path leads to
	// Store is the path of a file that is made, or of a block device, all of which is
	// overwritten; "" is a file .tidemark-NAME on the filesystem that lies on the device, LVM
	// has lvm2 make the snapshot of a logical volume, with a store in its group (of all devices of a
	// request, or of none), and Zram is memory, compressed.
	Store string
	// Ranges, in place of Store, are parts of devices that nobody uses, which are overwritten.
	Ranges []Range
	// Replace has the store take the place of a list of changes, if one is at its path.
	Replace bool
	// Size is that of the store in bytes; 0 is a tenth of the device, or as much as changed in the
	// last day where that is more and known (Volume.Sized), or what there is room for.
	Size int64
}

// Volume is one origin of a snapshot.
type Volume struct {
	Name  string    `json:"origin"`         // in device-mapper
	UUID  string    `json:"uuid,omitempty"` // there
	Dev   sysfs.Dev `json:"device"`
	Size  int64     `json:"size"`          // bytes
	Era   bool      `json:"era,omitempty"` // an era device, which stays one
	Store Store     `json:"store"`
	// Note is what the filesystem of the origin of a persistent snapshot was like when it was
	// last seen with the snapshot in its place.
	Note *Note `json:"note,omitempty"`
	// Dropped says why a persistent snapshot is not shown any more.
	Dropped string `json:"dropped,omitempty"`
	Chain   *Chain `json:"chain,omitempty"` // where it is tracked

	share choice // how large a store is when nobody says so
	sized string // how the size of the store was chosen
}

// Store is where old blocks go.
type Store struct {
	Kind string `json:"kind"` // Inside, File, Block, Zram or LVM
	Path string `json:"path"` // of the file or the device, /dev/VG/NAME for LVM
	Size int64  `json:"size"` // bytes
	// Ranges are what the store consists of, in its order, where it is not all of a device.
	Ranges []Range `json:"ranges,omitempty"`
	// Below is the path of a file inside, from where the filesystem is mounted.
	Below string `json:"below,omitempty"`
	// File and Folder tell the store's file, and the folder that it was made in, from others of the
	// same path. "" stands for a file that is not made yet, and for a folder that ends with the boot.
	// Of a store in memory File is what tells its device from others.
	File   string `json:"file,omitempty"`
	Folder string `json:"folder,omitempty"`
	// Extents are the bytes of the origin that the store's file has, where it is inside; whole
	// chunks of the file's extents are the store.
	Extents []extent.Extent `json:"extents,omitempty"`
	// Pieces are the bytes of the origin that a store inside consists of, in its order.
	Pieces []extent.Extent `json:"pieces,omitempty"`
	// Mark is random, and in the header of a persistent one.
	Mark string `json:"mark,omitempty"`

	replaces bool // a list of changes that is there
}

// The kinds of store.
const (
	Inside = "inside" // a file on the origin's own filesystem
	File   = "file"   // a file elsewhere, through a loop device
	Block  = "device" // a block device
	LVM    = "lvm"    // in the volume group of the origin, made by lvm2
	Zram   = "zram"   // a device in memory, compressed
)

// Image returns the path of the device that shows the volume as it was.
func (s *Snapshot) Image(v *Volume) string { return "/dev/mapper/" + s.image(v) }

// Inside returns the bytes of the origin that the store's file has, which count as changed when
// the snapshot is gone.
func (v *Volume) Inside() extent.Set { return extent.NewSet(v.Store.Extents...) }

func (v *Volume) path() string { return "/dev/mapper/" + v.Name }

// The names of our devices.
func (v *Volume) real() string { return v.Name + "+real" }

func (s *Snapshot) image(v *Volume) string {
	if v.ofLVM() {
		return s.copied(v)
	}
	return v.Name + "+" + s.Name
}
func (s *Snapshot) cow(v *Volume) string { return v.Name + "+" + s.Name + "+cow" }
func (s *Snapshot) copied(v *Volume) string {
	if v.ofLVM() {
		return lvm.Volume{VG: filepath.Base(filepath.Dir(v.Store.Path)), Name: filepath.Base(v.Store.Path)}.Device()
	}
	return v.Name + "+" + s.Name + "+snap"
}

// uuid is the UUID of a device of ours, by which rules and people know it.
func uuid(name string) string { return "TIDEMARK-SNAPSHOT-" + name }
