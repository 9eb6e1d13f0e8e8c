package fsfreeze

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// The two processes talk over a pair of sequenced-packet sockets: one packet is
// one message, and the end of file is the death of the other.

// A command goes to the watchdog.
type command byte

const (
	cmdSync   command = 'S' // syncfs on all
	cmdFreeze command = 'F' // freeze all; followed by the time limit
	cmdThaw   command = 'T' // thaw all, and leave
)

// orderSize is a command byte and a little-endian count of nanoseconds.
const orderSize = 9

type order struct {
	cmd command
	max time.Duration // of a freeze; 0 is no limit
}

func (o order) encode() []byte {
	b := make([]byte, orderSize)
	b[0] = byte(o.cmd)
	binary.LittleEndian.PutUint64(b[1:], uint64(o.max))
	return b
}

func decodeOrder(b []byte) (order, error) {
	if len(b) != orderSize {
		return order{}, fmt.Errorf("order of %d bytes, want %d", len(b), orderSize)
	}
	o := order{cmd: command(b[0]), max: time.Duration(binary.LittleEndian.Uint64(b[1:]))}
	if o.max < 0 {
		return order{}, fmt.Errorf("order with time limit %d", o.max)
	}
	return o, nil
}

// An event comes from the watchdog.
type event byte

const (
	evReady    event = 'r' // armed
	evSynced   event = 's' // one filesystem
	evSyncEnd  event = 'S' // all of them
	evFreezing event = 'b' // the call is about to be made
	evFrozen   event = 'f' // the call is through, with its errno
	evStill    event = 'F' // all filesystems that can be frozen are
	evThawed   event = 't' // one filesystem, with its errno
	evExpired  event = 'x' // the time was up: it is thawing
	evLeaving  event = 'q' // nothing is frozen any more
)

// reportSize is an event byte, then index and errno in 4 bytes each.
const reportSize = 9

type report struct {
	event event
	index int
	errno unix.Errno
}

func (r report) encode() []byte {
	b := make([]byte, reportSize)
	b[0] = byte(r.event)
	binary.LittleEndian.PutUint32(b[1:], uint32(r.index))
	binary.LittleEndian.PutUint32(b[5:], uint32(r.errno))
	return b
}

// decodeReport refuses an index that is not one of count filesystems.
func decodeReport(b []byte, count int) (report, error) {
	if len(b) != reportSize {
		return report{}, fmt.Errorf("report of %d bytes, want %d", len(b), reportSize)
	}
	index := binary.LittleEndian.Uint32(b[1:])
	if int64(index) >= int64(max(count, 1)) {
		return report{}, fmt.Errorf("report on filesystem %d of %d", index, count)
	}
	return report{event(b[0]), int(index), unix.Errno(binary.LittleEndian.Uint32(b[5:]))}, nil
}
