package era

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// maxTag is the longest tag or comment line part the scanner accepts, in bytes.
const maxTag = 64 << 10

// maxAttrs is the most attributes one tag may have; the format uses four.
const maxAttrs = 8

// tagScanner reads the small part of XML that era_dump writes: tags with
// attributes, white space, comments, a declaration. It allocates nothing for a
// tag: dumps have 10^8 of them.
type tagScanner struct {
	r      *bufio.Reader
	offset int64 // of the tag, in bytes
	next   int64

	name  []byte
	end   bool // </name>
	empty bool // <name/>
	attrs [maxAttrs]attr
	n     int
}

type attr struct {
	name, value []byte
}

func newTagScanner(r io.Reader) *tagScanner {
	return &tagScanner{r: bufio.NewReaderSize(r, maxTag)}
}

func (s *tagScanner) errorf(format string, args ...any) error {
	return fmt.Errorf("era: XML at byte %d: %s: %w", s.offset, fmt.Sprintf(format, args...), ErrXML)
}

// scan reads the next tag. It returns io.EOF at the end of the input. name and
// attributes are valid until the next call.
func (s *tagScanner) scan() error {
	for {
		s.offset = s.next
		if err := s.space(); err != nil {
			return err
		}
		raw, err := s.r.ReadSlice('>')
		s.next += int64(len(raw))
		if err != nil {
			return s.broken(err)
		}
		switch {
		case raw[0] != '<':
			return s.errorf("text where a tag should be")
		case bytes.HasPrefix(raw, []byte("<!--")):
			err = s.comment(raw)
		case bytes.HasPrefix(raw, []byte("<?")):
			if !bytes.HasSuffix(raw, []byte("?>")) {
				return s.errorf("unfinished declaration")
			}
		default:
			return s.tag(raw[1 : len(raw)-1])
		}
		if err != nil {
			return err
		}
	}
}

func (s *tagScanner) broken(err error) error {
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return s.errorf("tag of more than %d bytes", maxTag)
	case err == io.EOF:
		return s.errorf("cut off inside a tag")
	}
	return err
}

func (s *tagScanner) space() error {
	for {
		c, err := s.r.ReadByte()
		if err != nil {
			return err
		}
		if !isSpace(c) {
			return s.r.UnreadByte()
		}
		s.next++
		s.offset = s.next
	}
}

// comment skips the rest of a comment whose beginning is raw.
func (s *tagScanner) comment(raw []byte) error {
	for len(raw) < len("<!---->") || !bytes.HasSuffix(raw, []byte("-->")) {
		more, err := s.r.ReadSlice('>')
		s.next += int64(len(more))
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return s.broken(err)
		}
		raw = append(append([]byte("<!--"), raw[max(0, len(raw)-3):]...), more...)
	}
	return nil
}

// tag takes apart what stands between < and >.
func (s *tagScanner) tag(b []byte) error {
	s.end = bytes.HasPrefix(b, []byte("/"))
	if s.end {
		b = b[1:]
	}
	s.empty = bytes.HasSuffix(b, []byte("/"))
	if s.empty {
		b = b[:len(b)-1]
	}
	s.name, b = word(b)
	if len(s.name) == 0 || s.end && s.empty {
		return s.errorf("not a tag")
	}
	for s.n = 0; ; s.n++ {
		b = bytes.TrimLeft(b, " \t\r\n")
		if len(b) == 0 {
			return nil
		}
		if s.n == maxAttrs || s.end {
			return s.errorf("too many attributes")
		}
		var err error
		if b, err = s.attribute(&s.attrs[s.n], b); err != nil {
			return err
		}
	}
}

func (s *tagScanner) attribute(a *attr, b []byte) ([]byte, error) {
	a.name, b = word(b)
	b = bytes.TrimLeft(b, " \t\r\n")
	if len(a.name) == 0 || len(b) == 0 || b[0] != '=' {
		return nil, s.errorf("attribute without a value")
	}
	b = bytes.TrimLeft(b[1:], " \t\r\n")
	if len(b) == 0 || b[0] != '"' && b[0] != '\'' {
		return nil, s.errorf("attribute %q has no quotes", a.name)
	}
	end := bytes.IndexByte(b[1:], b[0])
	if end < 0 {
		return nil, s.errorf("attribute %q has no closing quote", a.name)
	}
	a.value = b[1 : 1+end]
	return b[end+2:], nil
}

// word cuts a name off the front of b.
func word(b []byte) (name, rest []byte) {
	i := 0
	for i < len(b) && (b[i] == '_' || b[i] >= 'a' && b[i] <= 'z' || b[i] >= 'A' && b[i] <= 'Z' || b[i] >= '0' && b[i] <= '9') {
		i++
	}
	return b[:i], b[i:]
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

// is says whether the tag just read opens the named element.
func (s *tagScanner) is(name string) bool { return !s.end && string(s.name) == name }

// closes says whether the tag just read ends the named element.
func (s *tagScanner) closes(name string) bool { return s.end && string(s.name) == name }

// attr returns the value of an attribute that must be there once.
func (s *tagScanner) attr(name string) ([]byte, error) {
	var value []byte
	for i := range s.attrs[:s.n] {
		if string(s.attrs[i].name) != name {
			continue
		}
		if value != nil {
			return nil, s.errorf("two attributes %s", name)
		}
		value = s.attrs[i].value[:len(s.attrs[i].value):len(s.attrs[i].value)]
	}
	if value == nil {
		return nil, s.errorf("<%s> has no attribute %s", s.name, name)
	}
	return value, nil
}

// number returns an attribute that is a decimal number of at most limit.
func (s *tagScanner) number(name string, limit uint64) (uint64, error) {
	v, err := s.attr(name)
	if err != nil {
		return 0, err
	}
	n := uint64(0)
	for _, c := range v {
		if c < '0' || c > '9' || n > limit {
			n = limit + 1
			break
		}
		n = n*10 + uint64(c-'0')
	}
	if len(v) == 0 || n > limit {
		return 0, s.errorf("%s=%s, want a number of at most %d", name, strconv.Quote(string(v)), limit)
	}
	return n, nil
}
