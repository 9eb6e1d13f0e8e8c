package era

import (
	"errors"
	"html"
	"io"
	"math"
	"strings"

	"tidemark/format/pdata"
)

// ParseXML reads the XML of era_dump, of thin-provisioning-tools 0.9 or 1.x, and
// gives its content to sink. Blocks must ascend; bits that are not named are
// false, eras that are not named 0. It fails with ErrXML, always with the byte
// offset, or with the error of r or sink.
func ParseXML(r io.Reader, sink Sink) error {
	p := parser{tagScanner: newTagScanner(r), sink: sink}
	if err := p.superblock(); err != nil {
		if errors.Is(err, io.EOF) {
			return p.errorf("cut off")
		}
		return err
	}
	switch err := p.scan(); {
	case err == nil:
		return p.errorf("more after </superblock>")
	case err != io.EOF:
		return err
	}
	return sink.End()
}

// Restore writes the metadata that the XML describes to the first size bytes of
// w. The superblock is zeroed first and written last, so that a restore that
// fails leaves no metadata rather than half of it. When w has a Sync method it
// is called before and after the superblock is written. Writes are of whole
// blocks in aligned memory, fit for O_DIRECT.
func Restore(r io.Reader, w io.WriterAt, size int64) error {
	return ParseXML(r, NewBuilder(w, size))
}

type parser struct {
	*tagScanner
	sink Sink
	h    Header
}

func (p *parser) superblock() error {
	if err := p.scan(); err != nil {
		return err
	}
	if !p.is("superblock") || p.empty {
		return p.errorf("<%s>, want <superblock>", p.name)
	}
	if err := p.header(); err != nil {
		return err
	}
	if err := p.sink.Begin(p.h); err != nil {
		return err
	}
	for array := false; ; {
		err := p.scan()
		switch {
		case err != nil:
			return err
		case p.is("writeset") && !array:
			err = p.writeset()
		case p.is("era_array") && !array:
			array = true
			err = p.array()
		case p.closes("superblock") && array:
			return nil
		default:
			return p.errorf("unexpected %s", p.name)
		}
		if err != nil {
			return err
		}
	}
}

func (p *parser) header() error {
	uuid, err := p.attr("uuid")
	if err != nil {
		return err
	}
	p.h.UUID = html.UnescapeString(string(uuid))
	if strings.ContainsFunc(p.h.UUID, func(c rune) bool { return c < ' ' }) {
		return p.errorf("uuid with control characters")
	}
	sectors, err1 := p.number("block_size", math.MaxUint32)
	blocks, err2 := p.number("nr_blocks", math.MaxUint32)
	era, err3 := p.number("current_era", math.MaxUint32)
	p.h.BlockSectors, p.h.NrBlocks, p.h.Era = uint32(sectors), uint32(blocks), Era(era)
	return errors.Join(err1, err2, err3)
}

func (p *parser) writeset() error {
	era, err := p.number("era", math.MaxUint32)
	if err != nil {
		return err
	}
	total, err := p.number("nr_bits", math.MaxUint32)
	if err != nil {
		return err
	}
	if err := p.sink.BeginWriteset(Era(era), uint32(total)); err != nil {
		return err
	}
	bits := bitPieces{sink: p.sink, total: total}
	next := uint64(0)
	err = p.children("writeset", func() error {
		r, set, err := p.bits(next, total)
		if err != nil {
			return err
		}
		next = r.Hi
		if !set {
			return nil
		}
		return bits.fill(r)
	})
	if err != nil {
		return err
	}
	if err := bits.sendTo(total); err != nil {
		return err
	}
	return p.sink.EndWriteset()
}

// children calls each for every element inside the one just opened.
func (p *parser) children(name string, each func() error) error {
	if p.empty {
		return nil
	}
	for {
		if err := p.scan(); err != nil {
			return err
		}
		if p.closes(name) {
			return nil
		}
		if p.end {
			return p.errorf("</%s> inside <%s>", p.name, name)
		}
		if !p.empty {
			return p.errorf("<%s> inside <%s> is not closed", p.name, name)
		}
		if err := each(); err != nil {
			return err
		}
	}
}

// bits reads one <bit> or one <marked> of a writeset of total bits.
func (p *parser) bits(next, total uint64) (r pdata.Span, set bool, err error) {
	switch {
	case p.is("bit"):
		if r.Lo, err = p.number("block", math.MaxUint32); err != nil {
			return r, false, err
		}
		r.Hi = r.Lo + 1
		set, err = p.boolean("value")
	case p.is("marked"):
		var n uint64
		if r.Lo, err = p.number("block_begin", math.MaxUint32); err != nil {
			return r, false, err
		}
		n, err = p.number("len", math.MaxUint32)
		r.Hi, set = r.Lo+n, true
	default:
		return r, false, p.errorf("<%s> inside <writeset>", p.name)
	}
	if err == nil && (r.Lo < next || r.Hi > total) {
		err = p.errorf("block %d is not between %d and %d", r.Lo, next, total)
	}
	return r, set, err
}

func (p *parser) boolean(name string) (bool, error) {
	v, err := p.attr(name)
	if err != nil {
		return false, err
	}
	switch string(v) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, p.errorf("%s=%q, want true or false", name, v)
}

func (p *parser) array() error {
	if err := p.sink.BeginArray(); err != nil {
		return err
	}
	e := eraPieces{sink: p.sink, total: uint64(p.h.NrBlocks)}
	next := uint64(0)
	err := p.children("era_array", func() error {
		if !p.is("era") {
			return p.errorf("<%s> inside <era_array>", p.name)
		}
		block, err := p.number("block", math.MaxUint32)
		if err != nil {
			return err
		}
		era, err := p.number("era", math.MaxUint32)
		if err != nil {
			return err
		}
		if block < next || block >= e.total {
			return p.errorf("block %d is not between %d and %d", block, next, e.total)
		}
		next = block + 1
		return e.set(block, Era(era))
	})
	if err != nil {
		return err
	}
	if err := e.sendTo(e.total); err != nil {
		return err
	}
	return p.sink.EndArray()
}

// fill sets the bits of r, which begins at or after the current piece, and
// sends the pieces before its end.
func (p *bitPieces) fill(r pdata.Span) error {
	for r.Lo < r.Hi {
		if err := p.sendTo(r.Lo / bitsPerBlock * bitsPerBlock); err != nil {
			return err
		}
		hi := min(r.Hi, p.at+bitsPerBlock)
		pdata.Bitmap(p.words[:]).Fill(r.Lo-p.at, hi-p.at)
		r.Lo = hi
	}
	return nil
}

// eraPieces sends the era array in pieces of one block of it.
type eraPieces struct {
	sink  Sink
	total uint64
	at    uint64
	eras  [erasPerBlock]Era
}

func (p *eraPieces) set(block uint64, e Era) error {
	if err := p.sendTo(block / erasPerBlock * erasPerBlock); err != nil {
		return err
	}
	p.eras[block-p.at] = e
	return nil
}

func (p *eraPieces) sendTo(end uint64) error {
	for p.at < min(end, p.total) {
		n := min(p.total-p.at, erasPerBlock)
		if err := p.sink.Eras(p.eras[:n]); err != nil {
			return err
		}
		clear(p.eras[:])
		p.at += n
	}
	return nil
}
