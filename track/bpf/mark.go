package bpf

import (
	"fmt"
	"strconv"
	"strings"

	"tidemark/extent"
	"tidemark/track"
	"tidemark/track/history"
)

// moment is what a mark says: "<generation, 16 hex digits>:<epoch>", followed by
// ":<start>+<length>" in bytes when the source is a partition.
type moment struct {
	generation string
	epoch      uint64
	slice      extent.Extent // zero for a whole disk
}

func (m moment) mark() track.Mark {
	s := m.generation + ":" + strconv.FormatUint(m.epoch, 10)
	if m.slice != (extent.Extent{}) {
		s += fmt.Sprintf(":%d+%d", m.slice.Off, m.slice.Len)
	}
	return track.NewMark(Kind, s)
}

// parse reads a mark. The error is a track.LostError for the mark of another tracker,
// and wraps track.ErrBadMark unless m is spelled as mark writes it.
func parse(m track.Mark) (moment, error) {
	body, err := m.BodyOf(Kind)
	if err != nil {
		return moment{}, err
	}
	bad := fmt.Errorf("track: %q: %w", string(m), track.ErrBadMark)
	parts := strings.Split(body, ":")
	if len(parts) < 2 || len(parts) > 3 || !history.IsID(parts[0]) {
		return moment{}, bad
	}
	epoch, err := strconv.ParseUint(parts[1], 10, 64)
	if err != nil || epoch == 0 {
		return moment{}, bad
	}
	out := moment{generation: parts[0], epoch: epoch}
	if len(parts) == 3 {
		off, length, _ := strings.Cut(parts[2], "+")
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
