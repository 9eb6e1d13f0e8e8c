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
// bytes when the source is a partition; "era:<lineage, 16 hex digits>:<era>" for an
// [Era]. "scan" is the mark of [Scan]; the empty mark is none.
type Mark string

// ErrBadMark says that a text is not a mark.
var ErrBadMark = errors.New("not a mark")

// The kinds of trackers, which their marks begin with.
const (
	KindLive = "bpf"
	KindEra  = "era"
	KindScan = "scan"
)

// Kind returns the kind of the tracker that made the mark; "" for none.
func (m Mark) Kind() string {
	kind, _, _ := strings.Cut(string(m), ":")
	return kind
}

// generationBytes is the length of a generation id before it is written in hex.
const generationBytes = 8

// moment is what a mark of a Live says.
type moment struct {
	generation string
	epoch      uint64
	slice      extent.Extent // zero for a whole disk
}

func (m moment) mark() Mark {
	s := KindLive + ":" + m.generation + ":" + strconv.FormatUint(m.epoch, 10)
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
	if len(parts) < 3 || len(parts) > 4 || parts[0] != KindLive || !isID(parts[1]) {
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
	_, eraErr := m.parseEra()
	return err == nil || eraErr == nil
}

// eraMoment is what a mark of an Era says.
type eraMoment struct {
	lineage string
	era     uint64
}

func (m eraMoment) mark() Mark {
	return Mark(KindEra + ":" + m.lineage + ":" + strconv.FormatUint(m.era, 10))
}

// parseEra is parse for the mark of an Era.
func (m Mark) parseEra() (eraMoment, error) {
	bad := fmt.Errorf("track: %q: %w", string(m), ErrBadMark)
	parts := strings.Split(string(m), ":")
	if len(parts) != 3 || parts[0] != KindEra || !isID(parts[1]) {
		return eraMoment{}, bad
	}
	n, err := strconv.ParseUint(parts[2], 10, 32)
	out := eraMoment{lineage: parts[1], era: n}
	if err != nil || n == 0 || out.mark() != m {
		return eraMoment{}, bad
	}
	return out, nil
}

// isID reports whether s is a generation or lineage id as it is written.
func isID(s string) bool {
	raw, err := hex.DecodeString(s)
	return err == nil && len(raw) == generationBytes && hex.EncodeToString(raw) == s
}
