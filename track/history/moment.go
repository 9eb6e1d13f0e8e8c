package history

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"tidemark/extent"
	"tidemark/track"
)

// idBytes is the length of a generation id before it is written in hex.
const idBytes = 8

// NewID returns the id of a new generation, at random: 16 hex digits.
func NewID() (string, error) {
	id := make([]byte, idBytes)
	if _, err := rand.Read(id); err != nil {
		return "", fmt.Errorf("track: generation id: %w", err)
	}
	return hex.EncodeToString(id), nil
}

// IsID reports whether s is an id as NewID writes it.
func IsID(s string) bool {
	raw, err := hex.DecodeString(s)
	return err == nil && len(raw) == idBytes && hex.EncodeToString(raw) == s
}

// Moment is what the mark of a tracker of epochs says: "<generation>:<epoch>", followed
// by ":<start>+<length>" in bytes where the source is a slice of what is tracked.
type Moment struct {
	Generation string
	Epoch      uint64        // that begins then, from 1
	Slice      extent.Extent // zero for all that is tracked
}

// Mark returns the mark of the moment, of that kind.
func (m Moment) Mark(kind string) track.Mark {
	s := m.Generation + ":" + strconv.FormatUint(m.Epoch, 10)
	if m.Slice != (extent.Extent{}) {
		s += fmt.Sprintf(":%d+%d", m.Slice.Off, m.Slice.Len)
	}
	return track.NewMark(kind, s)
}

// ParseMark reads a mark of that kind. The error is a track.LostError for the mark of
// another tracker, and wraps track.ErrBadMark unless m is spelled as Mark spells it.
func ParseMark(m track.Mark, kind string) (Moment, error) {
	body, err := m.BodyOf(kind)
	if err != nil {
		return Moment{}, err
	}
	var out Moment
	id, rest, _ := strings.Cut(body, ":")
	number, slice, sliced := strings.Cut(rest, ":")
	out.Generation = id
	out.Epoch, err = strconv.ParseUint(number, 10, 64)
	if sliced && err == nil {
		off, length, _ := strings.Cut(slice, "+")
		var err2 error
		out.Slice.Off, err = strconv.ParseInt(off, 10, 64)
		if out.Slice.Len, err2 = strconv.ParseInt(length, 10, 64); err == nil {
			err = err2
		}
	}
	if err != nil || out.Epoch == 0 || !IsID(id) || sliced && out.Slice.Len == 0 || !out.Slice.Valid() || out.Mark(kind) != m {
		return Moment{}, fmt.Errorf("track: %q: %w", string(m), track.ErrBadMark)
	}
	return out, nil
}
