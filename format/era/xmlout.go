package era

import (
	"io"
	"strconv"
	"strings"
)

// flushAt is how many bytes of output are collected before they are written.
const flushAt = 128 << 10

// output collects text.
type output struct {
	w   io.Writer
	buf []byte
}

func (o *output) flush() error {
	_, err := o.w.Write(o.buf)
	o.buf = o.buf[:0]
	return err
}

func (o *output) text(s string) error {
	o.buf = append(o.buf, s...)
	if len(o.buf) < flushAt {
		return nil
	}
	return o.flush()
}

// xmlSink writes the XML of thin-provisioning-tools 0.9, byte for byte. A
// device of 2^24 blocks with some writesets has 10^8 lines, so it formats by
// hand.
type xmlSink struct {
	output
	block decimal
	tail  []byte // the end of the line for the era last written
}

// NewXML returns a Sink that writes what era_dump 0.9 prints.
func NewXML(w io.Writer) Sink {
	return &xmlSink{output: output{w, make([]byte, 0, flushAt+128)}}
}

func (x *xmlSink) attr(name string, v uint64) {
	x.buf = append(x.buf, ' ')
	x.buf = append(x.buf, name...)
	x.buf = append(x.buf, `="`...)
	x.buf = strconv.AppendUint(x.buf, v, 10)
	x.buf = append(x.buf, '"')
}

func (x *xmlSink) Begin(h Header) error {
	escape := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;")
	x.buf = append(x.buf, `<superblock uuid="`...)
	x.buf = append(x.buf, escape.Replace(h.UUID)...)
	x.buf = append(x.buf, '"')
	x.attr("block_size", uint64(h.BlockSectors))
	x.attr("nr_blocks", uint64(h.NrBlocks))
	x.attr("current_era", uint64(h.Era))
	return x.text(">\n")
}

func (x *xmlSink) BeginWriteset(e Era, bits uint32) error {
	x.buf = append(x.buf, "  <writeset"...)
	x.attr("era", uint64(e))
	x.attr("nr_bits", uint64(bits))
	x.block.reset()
	return x.text(">\n")
}

func (x *xmlSink) Bits(words []uint64, n int) error {
	buf := x.buf
	for i := range n {
		buf = append(buf, `    <bit block="`...)
		buf = x.block.appendNext(buf)
		if words[i/64]>>(i&63)&1 != 0 {
			buf = append(buf, "\" value=\"true\"/>\n"...)
		} else {
			buf = append(buf, "\" value=\"false\"/>\n"...)
		}
		if len(buf) >= flushAt {
			x.buf = buf
			if err := x.flush(); err != nil {
				return err
			}
			buf = x.buf
		}
	}
	x.buf = buf
	return nil
}

func (x *xmlSink) EndWriteset() error { return x.text("  </writeset>\n") }

func (x *xmlSink) BeginArray() error {
	x.block.reset()
	return x.text("  <era_array>\n")
}

func (x *xmlSink) Eras(eras []Era) error {
	buf := x.buf
	for i, e := range eras {
		if i == 0 || e != eras[i-1] {
			x.tail = append(x.tail[:0], `" era="`...)
			x.tail = strconv.AppendUint(x.tail, uint64(e), 10)
			x.tail = append(x.tail, "\"/>\n"...)
		}
		buf = append(buf, `    <era block="`...)
		buf = x.block.appendNext(buf)
		buf = append(buf, x.tail...)
		if len(buf) >= flushAt {
			x.buf = buf
			if err := x.flush(); err != nil {
				return err
			}
			buf = x.buf
		}
	}
	x.buf = buf
	return nil
}

func (x *xmlSink) EndArray() error { return x.text("  </era_array>\n") }

func (x *xmlSink) End() error {
	x.buf = append(x.buf, "</superblock>\n"...)
	return x.flush()
}

// decimal counts 0, 1, 2… in digits.
type decimal struct {
	digits [20]byte
	first  int
}

func (d *decimal) reset() {
	d.first = len(d.digits) - 1
	d.digits[d.first] = '0'
}

// appendNext appends the number to buf and counts on.
func (d *decimal) appendNext(buf []byte) []byte {
	buf = append(buf, d.digits[d.first:]...)
	for i := len(d.digits) - 1; ; i-- {
		if i < d.first {
			d.first = i
			d.digits[i] = '1'
			return buf
		}
		if d.digits[i] != '9' {
			d.digits[i]++
			return buf
		}
		d.digits[i] = '0'
	}
}

// RangesXML writes the list that era_invalidate 0.9 prints and era_copy reads.
type RangesXML struct{ output }

// NewRangesXML begins a list.
func NewRangesXML(w io.Writer) *RangesXML {
	return &RangesXML{output{w, []byte("<blocks>\n")}}
}

// Range adds a range to the list; its method value fits View.Changed.
func (x *RangesXML) Range(r Range) error {
	if r.End-r.Begin == 1 {
		x.buf = append(x.buf, `  <block block="`...)
		x.buf = strconv.AppendUint(x.buf, uint64(r.Begin), 10)
	} else {
		x.buf = append(x.buf, `  <range begin="`...)
		x.buf = strconv.AppendUint(x.buf, uint64(r.Begin), 10)
		x.buf = append(x.buf, `" end = "`...)
		x.buf = strconv.AppendUint(x.buf, uint64(r.End), 10)
	}
	return x.text("\"/>\n")
}

// Close ends the list. Without it the list is incomplete, and readers say so.
func (x *RangesXML) Close() error {
	x.buf = append(x.buf, "</blocks>\n"...)
	return x.flush()
}
