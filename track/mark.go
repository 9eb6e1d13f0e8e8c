package track

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"tidemark/extent"
)

// Mark names a moment in the history of one source:
// "bpf:<generation, 16 hex digits>:<epoch>", followed by ":<start>+<length>" in
// bytes when the source is a partition. "scan" is the mark of [Scan]; the empty
// mark is none.
type Mark string

// ErrBadMark says that a text is not a mark.
var ErrBadMark = errors.New("not a mark")

const kindLive = "bpf"

// generationBytes is the length of a generation id before it is written in hex.
const generationBytes = 8

// moment is what a mark of a Live says.
type moment struct {
	generation string
	epoch      uint64
	slice      extent.Extent // zero for a whole disk
}

func (m moment) mark() Mark {
	s := kindLive + ":" + m.generation + ":" + strconv.FormatUint(m.epoch, 10)
	if m.slice != (extent.Extent{}) {
		s += fmt.Sprintf(":%d+%d", m.slice.Off, m.slice.Len)
	}
	return Mark(s)
}

// parse reads a mark; the error wraps ErrBadMark. Only the spelling that mark
// writes is accepted.
func (m Mark) parse() (moment, error) {
	bad := fmt.Errorf("track: %q: %w", string(m), ErrBadMark)
	parts := strings.Split(string(m), ":")
	if len(parts) < 3 || len(parts) > 4 || parts[0] != kindLive {
		return moment{}, bad
	}
	if raw, err := hex.DecodeString(parts[1]); err != nil || len(raw) != generationBytes || hex.EncodeToString(raw) != parts[1] {
		return moment{}, bad
	}
	epoch, err := strconv.ParseUint(parts[2], 10, 64)
	if err != nil || epoch == 0 {
		return moment{}, bad
	}
	out := moment{generation: parts[1], epoch: epoch}
	if len(parts) == 4 {
		off, length, _ := strings.Cut(parts[3], "+")
		o, err1 := strconv.ParseInt(off, 10, 64)
		l, err2 := strconv.ParseInt(length, 10, 64)
		out.slice = extent.Extent{Off: o, Len: l}
		if err1 != nil || err2 != nil || l == 0 || !out.slice.Valid() {
			return moment{}, bad
		}
	}
	if out.mark() != m {
		return moment{}, bad
	}
	return out, nil
}

// Valid reports whether m is spelled like a mark of any tracker.
func (m Mark) Valid() bool {
	if m == scanMark {
		return true
	}
	_, err := m.parse()
	return err == nil
}
