package dm

import (
	"fmt"

	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

// Sizes of the buffer for replies of unknown length, in bytes. The first is what
// libdevmapper begins with; the kernel itself ends at 1 GiB.
const (
	firstBuffer = 16 << 10
	mostBuffer  = 64 << 20
	// messageBuffer is not enlarged, for a message must not be sent twice.
	messageBuffer = 256 << 10
)

// request is one call to be made.
type request struct {
	op      string // for messages, "resume"
	cmd     command
	name    string    // of the device, for people; "": none
	kernel  string    // the name as the kernel has it; "": none
	uuid    string    // as the kernel has it; "": none
	dev     sysfs.Dev // instead of a name
	flags   uint32
	eventNr uint32
	targets uint32 // in data
	data    []byte // what follows the header
	size    int    // of the buffer; 0: enough for any reply that the kernel repeats
}

// run makes the call, with a larger buffer as long as the kernel asks for one. Its
// errors are those of failed.
func (c *Control) run(r *request) (reply, error) {
	size := max(r.size, headerSize+align(len(r.data)))
	if r.size == 0 {
		size = max(size, firstBuffer)
	}
	for {
		buf := make([]byte, size)
		r.encode(buf)
		if err := ioctl(c.file, r.cmd, buf); err != nil {
			return reply{}, r.failed(err)
		}
		got, err := parseReply(buf)
		switch {
		case err != nil:
			return reply{}, fmt.Errorf("dm: %s: %w", r.what(), err)
		case got.Flags&flagBufferFull == 0:
			return got, nil
		case r.size != 0 || size >= mostBuffer:
			return reply{}, fmt.Errorf("dm: %s: the reply has more than %d bytes", r.what(), size)
		}
		size *= 2
	}
}

func (r *request) encode(buf []byte) {
	h := header{
		Version:     [3]uint32{ioctlMajor, 0, 0},
		DataSize:    uint32(len(buf)),
		DataStart:   headerSize,
		TargetCount: r.targets,
		Flags:       r.flags,
		EventNr:     r.eventNr,
		Dev:         unix.Mkdev(r.dev.Major, r.dev.Minor), // as huge_encode_dev
	}
	copy(h.Name[:], r.kernel)
	copy(h.UUID[:], r.uuid)
	put(buf, &h)
	copy(buf[headerSize:], r.data)
}

// what describes the call and its object for messages.
func (r *request) what() string {
	switch {
	case r.name != "":
		return fmt.Sprintf("%s %q", r.op, r.name)
	case r.dev != sysfs.Dev{}:
		return fmt.Sprintf("%s %v", r.op, r.dev)
	}
	return r.op
}
