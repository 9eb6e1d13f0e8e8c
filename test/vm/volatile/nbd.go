package volatile

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// The part of the NBD protocol that QEMU's client speaks; names and values are from
// https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.
const (
	nbdMagic     = 0x4e42444d41474943 // "NBDMAGIC"
	optionMagic  = 0x49484156454f5054 // "IHAVEOPT"
	replyMagic   = 0x0003e889045565a9
	requestMagic = 0x25609513
	simpleMagic  = 0x67446698

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optAbort = 2
	optInfo  = 6
	optGo    = 7

	repAck         = 1
	repInfo        = 3
	repUnsupported = 1<<31 | 1

	infoExport = 0

	transHasFlags        = 1 << 0
	transSendFlush       = 1 << 2
	transSendFUA         = 1 << 3
	transSendTrim        = 1 << 5
	transSendWriteZeroes = 1 << 6

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6

	cmdFlagFUA = 1 << 0

	errIO      = 5
	errInvalid = 22

	maxOption  = 4096     // bytes of an option's data
	maxPayload = 32 << 20 // bytes of a read or write; the protocol's default limit
	zeroChunk  = 1 << 20  // bytes; trims and zeroes are written in pieces of this size
)

// Serve answers the clients that connect to l, one after the other, until l is closed.
// A client that breaks the protocol, or is killed, just ends its connection.
func (d *Disk) Serve(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("volatile disk: %w", err)
		}
		d.serveConn(conn)
		conn.Close()
	}
}

func (d *Disk) serveConn(conn net.Conn) {
	c := &client{disk: d, r: bufio.NewReaderSize(conn, 1<<16), w: conn}
	if err := c.handshake(); err != nil {
		return
	}
	for c.serveRequest() == nil {
	}
}

// client is one connection.
type client struct {
	disk *Disk
	r    *bufio.Reader
	w    io.Writer
	buf  []byte
}

var (
	errProtocol = errors.New("not the NBD protocol")
	errGone     = errors.New("the client said good-bye")
)

// handshake negotiates until the client asks to go.
func (c *client) handshake() error {
	hello := binary.BigEndian.AppendUint64(nil, nbdMagic)
	hello = binary.BigEndian.AppendUint64(hello, optionMagic)
	hello = binary.BigEndian.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if _, err := c.w.Write(hello); err != nil {
		return err
	}
	var flags [4]byte
	if _, err := io.ReadFull(c.r, flags[:]); err != nil {
		return err
	}
	for {
		option, err := c.readOption()
		if err != nil {
			return err
		}
		going, err := c.answerOption(option)
		if going || err != nil {
			return err
		}
	}
}

// readOption returns an option's number; its data (the export's name) does not matter.
func (c *client) readOption() (uint32, error) {
	var head [16]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return 0, err
	}
	length := binary.BigEndian.Uint32(head[12:])
	if binary.BigEndian.Uint64(head[:]) != optionMagic || length > maxOption {
		return 0, errProtocol
	}
	_, err := c.r.Discard(int(length))
	return binary.BigEndian.Uint32(head[8:]), err
}

// answerOption reports whether the transmission phase begins.
func (c *client) answerOption(option uint32) (bool, error) {
	switch option {
	case optGo, optInfo:
		if err := c.replyOption(option, repInfo, c.disk.export()); err != nil {
			return false, err
		}
		return option == optGo, c.replyOption(option, repAck, nil)
	case optAbort:
		return false, errors.Join(c.replyOption(option, repAck, nil), errGone)
	}
	return false, c.replyOption(option, repUnsupported, nil)
}

// export is the information about the one export.
func (d *Disk) export() []byte {
	info := binary.BigEndian.AppendUint16(nil, infoExport)
	info = binary.BigEndian.AppendUint64(info, uint64(d.size))
	return binary.BigEndian.AppendUint16(info,
		transHasFlags|transSendFlush|transSendFUA|transSendTrim|transSendWriteZeroes)
}

func (c *client) replyOption(option, reply uint32, data []byte) error {
	p := binary.BigEndian.AppendUint64(nil, replyMagic)
	p = binary.BigEndian.AppendUint32(p, option)
	p = binary.BigEndian.AppendUint32(p, reply)
	p = binary.BigEndian.AppendUint32(p, uint32(len(data)))
	_, err := c.w.Write(append(p, data...))
	return err
}

// request is one command of the transmission phase.
type request struct {
	flags, command uint16
	cookie         uint64
	off            int64
	length         int64
}

func (c *client) readRequest() (request, error) {
	var p [28]byte
	if _, err := io.ReadFull(c.r, p[:]); err != nil {
		return request{}, err
	}
	r := request{
		flags:   binary.BigEndian.Uint16(p[4:]),
		command: binary.BigEndian.Uint16(p[6:]),
		cookie:  binary.BigEndian.Uint64(p[8:]),
		off:     int64(binary.BigEndian.Uint64(p[16:])),
		length:  int64(binary.BigEndian.Uint32(p[24:])),
	}
	carries := r.command == cmdRead || r.command == cmdWrite
	if binary.BigEndian.Uint32(p[:]) != requestMagic || carries && r.length > maxPayload {
		return r, errProtocol
	}
	return r, nil
}

// serveRequest serves one request. After a power cut it returns without an answer.
func (c *client) serveRequest() error {
	r, err := c.readRequest()
	if err != nil {
		return err
	}
	if r.command == cmdDisc {
		return errGone
	}
	payload, err := c.payload(r)
	if err != nil {
		return err
	}
	code := uint32(0)
	switch err := c.do(r, payload); {
	case errors.Is(err, ErrPowerCut):
		return err
	case errors.Is(err, errProtocol):
		code = errInvalid
	case err != nil:
		code = errIO
	}
	return c.reply(r, code, payload)
}

// payload returns the buffer of a read or the data of a write.
func (c *client) payload(r request) ([]byte, error) {
	if r.command != cmdRead && r.command != cmdWrite {
		return nil, nil
	}
	if int64(len(c.buf)) < r.length {
		c.buf = make([]byte, r.length)
	}
	p := c.buf[:r.length]
	if r.command == cmdRead {
		return p, nil
	}
	_, err := io.ReadFull(c.r, p)
	return p, err
}

func (c *client) do(r request, payload []byte) error {
	if r.command != cmdFlush && (r.off < 0 || r.length > c.disk.size || r.off > c.disk.size-r.length) {
		return errProtocol
	}
	switch r.command {
	case cmdRead:
		return c.disk.read(payload, r.off)
	case cmdWrite:
		return c.disk.write(payload, r.off, r.flags&cmdFlagFUA != 0)
	case cmdFlush:
		return c.disk.flush()
	case cmdTrim, cmdWriteZeroes:
		return c.disk.zero(r.off, r.length, r.flags&cmdFlagFUA != 0)
	}
	return errProtocol
}

// zero overwrites a range with zeroes; each piece counts as a write.
func (d *Disk) zero(off, length int64, fua bool) error {
	zeroes := make([]byte, min(length, zeroChunk))
	for length > 0 {
		n := min(length, zeroChunk)
		if err := d.write(zeroes[:n], off, fua); err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return nil
}

func (c *client) reply(r request, code uint32, payload []byte) error {
	p := binary.BigEndian.AppendUint32(nil, simpleMagic)
	p = binary.BigEndian.AppendUint32(p, code)
	p = binary.BigEndian.AppendUint64(p, r.cookie)
	if r.command == cmdRead && code == 0 {
		p = append(p, payload...)
	}
	_, err := c.w.Write(p)
	return err
}
