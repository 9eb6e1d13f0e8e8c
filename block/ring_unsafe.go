package block

import (
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's interface, from include/uapi/linux/io_uring.h. A test compares the
// sizes and offsets with the header.

const (
	opRead            = 22      // IORING_OP_READ, Linux 5.6
	enterGetEvents    = 1       // IORING_ENTER_GETEVENTS
	featSingleMmap    = 1       // IORING_FEAT_SINGLE_MMAP, Linux 5.4
	offSubmissions    = 0x0     // IORING_OFF_SQ_RING
	offSubmissionList = 1 << 28 // IORING_OFF_SQES
)

// submission is struct io_uring_sqe, of a read.
type submission struct {
	opcode   uint8
	flags    uint8
	ioprio   uint16
	fd       int32
	off      uint64
	addr     uint64
	len      uint32
	rwFlags  uint32
	userData uint64
	_        [24]byte
}

// completion is struct io_uring_cqe.
type completion struct {
	userData uint64
	res      int32
	flags    uint32
}

// submissionOffsets is struct io_sqring_offsets.
type submissionOffsets struct {
	head, tail, ringMask, ringEntries, flags, dropped, array, _ uint32
	_                                                           uint64
}

// completionOffsets is struct io_cqring_offsets.
type completionOffsets struct {
	head, tail, ringMask, ringEntries, overflow, cqes, flags, _ uint32
	_                                                           uint64
}

// params is struct io_uring_params.
type params struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32
	sq                                                                     submissionOffsets
	cq                                                                     completionOffsets
}

// ring is an io_uring that one goroutine at a time reads through.
type ring struct {
	fd          int
	rings, list []byte // mapped
	submissions []submission
	array       []uint32
	completions []completion
	sqTail      *atomic.Uint32
	cqHead      *atomic.Uint32
	cqTail      *atomic.Uint32
	results     []int32
}

// newRing makes a ring for depth reads at a time. The error is that of the kernel,
// which may be too old, or forbid it.
func newRing(depth uint32) (*ring, error) {
	var p params
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(depth), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("io_uring_setup", errno)
	}
	r := &ring{fd: int(fd), results: make([]int32, depth)}
	if err := r.mapIn(&p); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *ring) mapIn(p *params) error {
	if p.features&featSingleMmap == 0 {
		return fmt.Errorf("io_uring: %w: the rings are mapped in two pieces before Linux 5.4", unix.EOPNOTSUPP)
	}
	size := max(int(p.sq.array+p.sqEntries*4), int(p.cq.cqes)+int(p.cqEntries)*int(unsafe.Sizeof(completion{})))
	var err error
	if r.rings, err = unix.Mmap(r.fd, offSubmissions, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return os.NewSyscallError("mmap", err)
	}
	size = int(p.sqEntries) * int(unsafe.Sizeof(submission{}))
	if r.list, err = unix.Mmap(r.fd, offSubmissionList, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return os.NewSyscallError("mmap", err)
	}
	r.submissions = unsafe.Slice((*submission)(unsafe.Pointer(&r.list[0])), p.sqEntries)
	r.array = unsafe.Slice((*uint32)(unsafe.Pointer(&r.rings[p.sq.array])), p.sqEntries)
	r.completions = unsafe.Slice((*completion)(unsafe.Pointer(&r.rings[p.cq.cqes])), p.cqEntries)
	r.sqTail = (*atomic.Uint32)(unsafe.Pointer(&r.rings[p.sq.tail]))
	r.cqHead = (*atomic.Uint32)(unsafe.Pointer(&r.rings[p.cq.head]))
	r.cqTail = (*atomic.Uint32)(unsafe.Pointer(&r.rings[p.cq.tail]))
	return nil
}

// read does at most depth reads at once, and returns when all of them have ended,
// for each the bytes read or a negative errno; valid until the next call. After an
// error nothing is known of them, and the ring is good for nothing but close.
func (r *ring) read(fd int32, reads []Read) ([]int32, error) {
	tail := r.sqTail.Load()
	mask := uint32(len(r.submissions) - 1) // the kernel rounds up to a power of two
	for i, rd := range reads {
		at := (tail + uint32(i)) & mask
		r.submissions[at] = submission{
			opcode: opRead, fd: fd, off: uint64(rd.Off), len: uint32(len(rd.Buf)), userData: uint64(i),
			addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(rd.Buf)))),
		}
		r.array[at] = at
	}
	r.sqTail.Store(tail + uint32(len(reads)))
	err := r.enter(len(reads))
	// Go does not move what a slice points to; it must only not be freed.
	runtime.KeepAlive(reads)
	return r.results[:len(reads)], err
}

// enter submits n reads and waits for as many completions.
func (r *ring) enter(n int) error {
	toSubmit, left := n, n
	for left > 0 {
		done, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(toSubmit), uintptr(left), enterGetEvents, 0, 0)
		if errno != 0 && errno != unix.EINTR && errno != unix.EAGAIN && errno != unix.EBUSY {
			return os.NewSyscallError("io_uring_enter", errno)
		}
		if errno == 0 {
			toSubmit -= int(done)
		}
		left -= r.reap()
	}
	return nil
}

// reap takes the completions that are there and returns how many.
func (r *ring) reap() int {
	head, tail := r.cqHead.Load(), r.cqTail.Load()
	mask := uint32(len(r.completions) - 1)
	for at := head; at != tail; at++ {
		c := r.completions[at&mask]
		if c.userData < uint64(len(r.results)) {
			r.results[c.userData] = c.res
		}
	}
	r.cqHead.Store(tail)
	return int(tail - head)
}

func (r *ring) close() {
	for _, m := range [][]byte{r.rings, r.list} {
		if m != nil {
			unix.Munmap(m)
		}
	}
	unix.Close(r.fd)
}
