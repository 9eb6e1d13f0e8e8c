package era

import (
	"fmt"
	"strconv"
	"strings"

	"tidemark/track"
	"tidemark/track/history"
)

// moment is what a mark says: "<lineage, 16 hex digits>:<era>".
type moment struct {
	lineage string
	era     uint64
}

func (m moment) mark() track.Mark {
	return track.NewMark(Kind, m.lineage+":"+strconv.FormatUint(m.era, 10))
}

// parse reads a mark. The error is a track.LostError for the mark of another tracker,
// and wraps track.ErrBadMark unless m is spelled as mark writes it.
func parse(m track.Mark) (moment, error) {
	body, err := m.BodyOf(Kind)
	if err != nil {
		return moment{}, err
	}
	id, number, _ := strings.Cut(body, ":")
	n, err := strconv.ParseUint(number, 10, 32)
	out := moment{lineage: id, era: n}
	if err != nil || n == 0 || !history.IsID(id) || out.mark() != m {
		return moment{}, fmt.Errorf("track: %q: %w", string(m), track.ErrBadMark)
	}
	return out, nil
}
