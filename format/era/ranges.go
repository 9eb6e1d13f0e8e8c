package era

import (
	"fmt"
	"io"
	"math"
)

// ParseRangesXML reads the list that era_invalidate prints, of 0.9 or 1.x or on
// one line, and calls each for every range as it comes: nothing is sorted or
// joined. It fails with ErrXML, and with io.EOF as well for an empty input, which
// a failed era_invalidate leaves in a pipe.
func ParseRangesXML(r io.Reader, each func(Range) error) error {
	p := parser{tagScanner: newTagScanner(r)}
	if err := p.scan(); err != nil {
		if err == io.EOF {
			return fmt.Errorf("%w: %w", p.errorf("no input"), io.EOF)
		}
		return err
	}
	if !p.is("blocks") {
		return p.errorf("<%s>, want <blocks>", p.name)
	}
	err := p.children("blocks", func() error {
		r, err := p.blockRange()
		if err != nil {
			return err
		}
		return each(r)
	})
	if err == io.EOF {
		return p.errorf("cut off")
	}
	if err != nil {
		return err
	}
	switch err := p.scan(); {
	case err == nil:
		return p.errorf("more after </blocks>")
	case err != io.EOF:
		return err
	}
	return nil
}

func (p *parser) blockRange() (Range, error) {
	if p.is("block") {
		b, err := p.number("block", math.MaxUint32-1)
		return Range{Block(b), Block(b + 1)}, err
	}
	if !p.is("range") {
		return Range{}, p.errorf("<%s> inside <blocks>", p.name)
	}
	begin, err := p.number("begin", math.MaxUint32)
	if err != nil {
		return Range{}, err
	}
	end, err := p.number("end", math.MaxUint32)
	if err == nil && begin >= end {
		err = p.errorf("range from %d to %d is empty", begin, end)
	}
	return Range{Block(begin), Block(end)}, err
}
