package dm

import "encoding/binary"

// From include/uapi/linux/dm-ioctl.h. The interface's major version is 4; a caller
// that says 4.0.0 is served by all of them.
const (
	ioctlMajor = 4
	ioctlType  = 0xfd
	nameLen    = 128 // with the NUL
	uuidLen    = 129 // with the NUL
	typeLen    = 16  // with the NUL, of a target type
)

// command is the number of an ioctl.
type command uint32

const (
	cmdVersion       command = 0
	cmdListDevices   command = 2
	cmdDevCreate     command = 3
	cmdDevRemove     command = 4
	cmdDevRename     command = 5
	cmdDevSuspend    command = 6 // and resume
	cmdDevStatus     command = 7
	cmdTableLoad     command = 9
	cmdTableClear    command = 10
	cmdTableDeps     command = 11
	cmdTableStatus   command = 12
	cmdListVersions  command = 13
	cmdTargetMessage command = 14
	cmdArmPoll       command = 16
	cmdTargetVersion command = 17
)

// number is _IOWR(0xfd, command, struct dm_ioctl).
func (c command) number() uintptr { return 3<<30 | headerSize<<16 | ioctlType<<8 | uintptr(c) }

// Flags of the header.
const (
	flagReadOnly        uint32 = 1 << 0
	flagSuspend         uint32 = 1 << 1
	flagStatusTable     uint32 = 1 << 4
	flagActivePresent   uint32 = 1 << 5
	flagInactivePresent uint32 = 1 << 6
	flagBufferFull      uint32 = 1 << 8
	flagSkipLockFS      uint32 = 1 << 10
	flagNoFlush         uint32 = 1 << 11
	flagQueryInactive   uint32 = 1 << 12
	flagUeventGenerated uint32 = 1 << 13
	flagUUID            uint32 = 1 << 14 // list the UUIDs as well
	flagDataOut         uint32 = 1 << 16
	flagDeferredRemove  uint32 = 1 << 17
	flagInternalSuspend uint32 = 1 << 18
)

// Flags of an entry in the list of devices.
const entryHasUUID uint32 = 1

// header is struct dm_ioctl. It starts every request and reply.
type header struct {
	Version     [3]uint32
	DataSize    uint32 // of the whole buffer
	DataStart   uint32 // offset of what follows the header
	TargetCount uint32
	OpenCount   int32
	Flags       uint32
	EventNr     uint32 // or the cookie for udev
	Padding     uint32
	Dev         uint64
	Name        [nameLen]byte
	UUID        [uuidLen]byte
	Data        [7]byte // padding
}

// headerSize is the size of header; headerLeast is where its padding starts: the
// least that the kernel returns.
const (
	headerSize  = 312
	headerLeast = 305
)

// targetSpec is struct dm_target_spec. The parameters follow, with a NUL.
type targetSpec struct {
	Start  uint64 // sectors
	Len    uint64 // sectors
	Status int32
	Next   uint32 // in a request from this spec, in a reply from the first one
	Type   [typeLen]byte
}

const specSize = 40

// nameEntry is the start of struct dm_name_list. The name follows at once, without
// the padding that sizeof counts.
type nameEntry struct {
	Dev  uint64
	Next uint32 // from the start of this entry; 0 in the last
}

const nameEntrySize = 12

// versionEntry is struct dm_target_versions. The name follows.
type versionEntry struct {
	Next    uint32 // from the start of this entry; 0 in the last
	Version [3]uint32
}

const versionEntrySize = 16

// depsHead is the start of struct dm_target_deps. The numbers follow.
type depsHead struct {
	Count   uint32
	Padding uint32
}

const depsHeadSize = 8

// messageHead is the start of struct dm_target_msg. The message follows, with a NUL.
type messageHead struct {
	Sector uint64
}

const messageHeadSize = 8

// align is what the kernel aligns everything in a buffer to.
func align(n int) int { return (n + 7) &^ 7 }

// put writes a struct of this file to the start of buf, which has room for it.
func put(buf []byte, v any) {
	if _, err := binary.Encode(buf, binary.NativeEndian, v); err != nil {
		panic(err) // only for a struct or a buffer that this package got wrong
	}
}

// get reads a struct of this file from the start of buf; false: buf is too short.
func get(buf []byte, v any) bool {
	_, err := binary.Decode(buf, binary.NativeEndian, v)
	return err == nil
}
