package thin

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// DumpFormat is how a dump looks.
type DumpFormat int

// XML is what thin_restore reads, Text is for people ("human_readable").
const (
	XML DumpFormat = iota
	Text
)

// DumpOptions chooses what Dump tells. The zero value tells all, as XML.
type DumpOptions struct {
	Format       DumpFormat
	Devices      []uint32 // only these; none: all
	SkipMappings bool
	Lenient      bool              // a device that does not exist is left out
	Override     func(*Superblock) // changes what is told of the superblock; nil: nothing
}

// Dump writes all of a view, as thin_dump of thin-provisioning-tools 0.9 does. It fails at the
// first fault; what was written until then is incomplete. The error wraps ErrNoDevice
// where a device that was asked for does not exist.
func (v *View) Dump(out io.Writer, o DumpOptions) error {
	list, err := v.chosen(o)
	if err != nil {
		return err
	}
	w := &dumper{Writer: bufio.NewWriterSize(out, 64<<10), text: o.Format == Text}
	super := v.super
	if o.Override != nil {
		o.Override(&super)
	}
	w.begin(super)
	for _, d := range list {
		w.device(d)
		if !o.SkipMappings {
			if err := v.Mappings(d.Root, w.mapping); err != nil {
				return err
			}
		}
		w.endDevice()
	}
	if w.text {
		w.WriteString("end superblock\n")
	} else {
		w.WriteString("</superblock>\n")
	}
	return w.Flush()
}

// chosen returns the devices with these numbers, or all.
func (v *View) chosen(o DumpOptions) ([]Device, error) {
	list, err := v.Devices()
	if err != nil || len(o.Devices) == 0 {
		return list, err
	}
	byID := map[uint32]Device{}
	for _, d := range list {
		byID[d.ID] = d
	}
	list = nil
	for _, id := range o.Devices {
		d, ok := byID[id]
		switch {
		case !ok && o.Lenient:
			continue
		case !ok:
			return nil, fmt.Errorf("thin: device %d: %w", id, ErrNoDevice)
		}
		list = append(list, d)
	}
	return list, nil
}

// UUIDText returns the UUID as the tools print it: up to the first zero byte.
func (s Superblock) UUIDText() string {
	text, _, _ := bytes.Cut(s.UUID[:], []byte{0})
	return string(text)
}

// dumper writes a dump. What fails shows when it is flushed.
type dumper struct {
	*bufio.Writer
	text bool
	buf  []byte
}

func escaped(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder does not fail
	return b.String()
}

func (w *dumper) begin(s Superblock) {
	if w.text {
		fmt.Fprintf(w, "begin superblock: \"%s\", %d, %d, %d, %d, %d, %d\n",
			s.UUIDText(), s.Time, s.Transaction, s.flags, s.Version, s.BlockSectors, s.Data.Blocks)
		return
	}
	fmt.Fprintf(w, "<superblock uuid=\"%s\" time=\"%d\" transaction=\"%d\" flags=\"%d\" version=\"%d\" data_block_size=\"%d\" nr_data_blocks=\"%d\">\n",
		escaped(s.UUIDText()), s.Time, s.Transaction, s.flags, s.Version, s.BlockSectors, s.Data.Blocks)
}

func (w *dumper) device(d Device) {
	if w.text {
		fmt.Fprintf(w, "device: %d\nmapped_blocks: %d\ntransaction: %d\ncreation time: %d\nsnap time: %d\n",
			d.ID, d.Mapped, d.Transaction, d.Created, d.Snapped)
		return
	}
	fmt.Fprintf(w, "  <device dev_id=\"%d\" mapped_blocks=\"%d\" transaction=\"%d\" creation_time=\"%d\" snap_time=\"%d\">\n",
		d.ID, d.Mapped, d.Transaction, d.Created, d.Snapped)
}

func (w *dumper) endDevice() {
	if w.text {
		w.WriteString("\n")
		return
	}
	w.WriteString("  </device>\n")
}

// mapping writes one run. Metadata has millions of them.
func (w *dumper) mapping(m Mapping) error {
	switch b := w.buf[:0]; {
	case w.text && m.Len == 1:
		w.buf = fmt.Appendf(b, "    %d -> %d, %d\n", m.Begin, m.Data, m.Time)
	case w.text:
		w.buf = fmt.Appendf(b, "    (%d..%d) -> (%d..%d), %d\n", m.Begin, m.Begin+m.Len-1, m.Data, m.Data+m.Len-1, m.Time)
	case m.Len == 1:
		b = attribute(b, `    <single_mapping origin_block="`, m.Begin)
		b = attribute(b, `" data_block="`, m.Data)
		b = attribute(b, `" time="`, uint64(m.Time))
		w.buf = append(b, "\"/>\n"...)
	default:
		b = attribute(b, `    <range_mapping origin_begin="`, m.Begin)
		b = attribute(b, `" data_begin="`, m.Data)
		b = attribute(b, `" length="`, m.Len)
		b = attribute(b, `" time="`, uint64(m.Time))
		w.buf = append(b, "\"/>\n"...)
	}
	_, err := w.Write(w.buf)
	return err
}

func attribute(b []byte, before string, n uint64) []byte {
	return strconv.AppendUint(append(b, before...), n, 10)
}
