package dm

import (
	"bytes"
	"errors"
	"fmt"

	"tidemark/linux/sysfs"
)

// errReply says that the kernel's reply makes no sense. It never should.
var errReply = errors.New("the kernel's reply is malformed")

// reply is what the kernel returned: the header, and the buffer as far as it is valid.
type reply struct {
	header
	buf []byte // from the header to the end of the data
}

// parseReply checks the header of a buffer that the kernel filled.
func parseReply(buf []byte) (reply, error) {
	var r reply
	if !get(buf, &r.header) {
		return reply{}, fmt.Errorf("%w: %d bytes, the header has %d", errReply, len(buf), headerSize)
	}
	if r.header.Version[0] != ioctlMajor {
		return reply{}, fmt.Errorf("%w: interface version %d, want %d", ErrNotSupported, r.header.Version[0], ioctlMajor)
	}
	if int64(r.DataSize) > int64(len(buf)) {
		return reply{}, fmt.Errorf("%w: %d bytes of data in a buffer of %d", errReply, r.DataSize, len(buf))
	}
	r.buf = buf[:r.DataSize]
	return r, nil
}

func (r *reply) version() Version {
	return Version{r.header.Version[0], r.header.Version[1], r.header.Version[2]}
}

// data returns what follows the header; none when there is nothing.
func (r *reply) data() ([]byte, error) {
	start := int64(r.DataStart)
	switch {
	case start < headerLeast || start%8 != 0:
		return nil, fmt.Errorf("%w: data starts at %d", errReply, start)
	case start >= int64(len(r.buf)):
		return nil, nil
	}
	return r.buf[start:], nil
}

// info reads the state of a device from the header.
func (r *reply) info() (Info, error) {
	name, ok := text(r.Name[:])
	if !ok {
		return Info{}, fmt.Errorf("%w: the name has no end", errReply)
	}
	uuid, ok := text(r.UUID[:])
	if !ok {
		return Info{}, fmt.Errorf("%w: the UUID has no end", errReply)
	}
	dev := sysfs.DevOf(r.Dev)
	return Info{
		Name: demangle(name), UUID: demangle(uuid), Major: dev.Major, Minor: dev.Minor,
		OpenCount: r.OpenCount, EventNr: r.EventNr, TargetCount: r.TargetCount,
		Suspended:         r.Flags&flagSuspend != 0,
		SuspendedInternal: r.Flags&flagInternalSuspend != 0,
		ReadOnly:          r.Flags&flagReadOnly != 0,
		ActiveTable:       r.Flags&flagActivePresent != 0,
		InactiveTable:     r.Flags&flagInactivePresent != 0,
		DeferredRemove:    r.Flags&flagDeferredRemove != 0,
	}, nil
}

// text returns the string that a NUL ends; false when none does.
func text(b []byte) (string, bool) {
	s, _, ok := bytes.Cut(b, []byte{0})
	return string(s), ok
}

// parseTargets reads the targets of a table or status, count of them.
func parseTargets(data []byte, count uint32) ([]Target, error) {
	var all []Target
	at := 0
	for n := range count {
		var spec targetSpec
		if at > len(data) || !get(data[at:], &spec) {
			return nil, fmt.Errorf("%w: target %d of %d at byte %d of %d", errReply, n, count, at, len(data))
		}
		kind, typed := text(spec.Type[:])
		params, ended := text(data[at+specSize:])
		if !typed || !ended {
			return nil, fmt.Errorf("%w: a string of target %d has no end", errReply, n)
		}
		all = append(all, Target{Start: spec.Start, Len: spec.Len, Type: kind, Params: params})
		least := align(at + specSize + len(params) + 1)
		if n+1 < count && (int64(spec.Next) < int64(least) || spec.Next%8 != 0) {
			return nil, fmt.Errorf("%w: target %d ends at byte %d, the next is at %d", errReply, n, least, spec.Next)
		}
		at = int(spec.Next)
	}
	return all, nil
}

// The minor versions of the interface that added to the list of devices.
const (
	minorEventNr = 37
	minorUUIDs   = 45
)

// parseEntries reads a list of devices, in the kernel's order. minor is that of the
// interface.
func parseEntries(data []byte, minor uint32) ([]Entry, error) {
	var all []Entry
	for at := 0; at < len(data); {
		var head nameEntry
		if !get(data[at:], &head) {
			return nil, fmt.Errorf("%w: device %d at byte %d of %d", errReply, len(all), at, len(data))
		}
		if head.Dev == 0 && len(all) == 0 {
			return nil, nil
		}
		end := len(data)
		if head.Next != 0 {
			end = at + int(head.Next)
		}
		if end > len(data) || end <= at+nameEntrySize || head.Next%8 != 0 {
			return nil, fmt.Errorf("%w: device %d at byte %d, the next is %d on, of %d", errReply, len(all), at, head.Next, len(data))
		}
		e, err := parseEntry(data[at+nameEntrySize:end], at+nameEntrySize, minor)
		if err != nil {
			return nil, fmt.Errorf("%w: device %d", err, len(all))
		}
		dev := sysfs.DevOf(head.Dev)
		e.Major, e.Minor = dev.Major, dev.Minor
		all = append(all, e)
		at = end
	}
	return all, nil
}

// parseEntry reads what follows the head of an entry: the name and, at the next
// multiple of 8 bytes, what newer kernels add. at is the position of b.
func parseEntry(b []byte, at int, minor uint32) (Entry, error) {
	name, ok := text(b)
	if !ok {
		return Entry{}, fmt.Errorf("%w: a name has no end", errReply)
	}
	e := Entry{Name: demangle(name)}
	if minor < minorEventNr {
		return e, nil
	}
	var more struct{ EventNr, Flags uint32 }
	skip := align(at+len(name)+1) - at
	if skip > len(b) || !get(b[skip:], &more) {
		return Entry{}, fmt.Errorf("%w: %q has no event number", errReply, name)
	}
	e.EventNr = more.EventNr
	if minor < minorUUIDs || more.Flags&entryHasUUID == 0 {
		return e, nil
	}
	uuid, ok := text(b[skip+8:])
	if !ok {
		return Entry{}, fmt.Errorf("%w: the UUID of %q has no end", errReply, name)
	}
	e.UUID = demangle(uuid)
	return e, nil
}

// parseVersions reads a list of target types.
func parseVersions(data []byte) ([]TargetType, error) {
	var all []TargetType
	for at := 0; at < len(data); {
		var head versionEntry
		if !get(data[at:], &head) {
			return nil, fmt.Errorf("%w: target type %d at byte %d of %d", errReply, len(all), at, len(data))
		}
		end := len(data)
		if head.Next != 0 {
			end = at + int(head.Next)
		}
		if end > len(data) || end < at+versionEntrySize {
			return nil, fmt.Errorf("%w: target type %d at byte %d, the next is %d on, of %d", errReply, len(all), at, head.Next, len(data))
		}
		name, ok := text(data[at+versionEntrySize : end])
		if !ok {
			return nil, fmt.Errorf("%w: a target type has no end", errReply)
		}
		all = append(all, TargetType{Name: name, Version: Version{head.Version[0], head.Version[1], head.Version[2]}})
		at = end
	}
	return all, nil
}

// parseDeps reads a list of device numbers.
func parseDeps(data []byte) ([]sysfs.Dev, error) {
	var head depsHead
	if !get(data, &head) {
		return nil, fmt.Errorf("%w: %d bytes of devices", errReply, len(data))
	}
	rest := data[depsHeadSize:]
	if uint64(head.Count)*8 > uint64(len(rest)) {
		return nil, fmt.Errorf("%w: %d devices in %d bytes", errReply, head.Count, len(rest))
	}
	all := make([]sysfs.Dev, head.Count)
	for i := range all {
		var n uint64
		get(rest[8*i:], &n)
		all[i] = sysfs.DevOf(n)
	}
	return all, nil
}
