package history

import (
	"bytes"
	"fmt"

	"tidemark/format/epochs"
	"tidemark/track"
)

// Saved is all that a History has, to be taken up elsewhere by another one.
type Saved struct {
	Leases Leases  `json:"leases"`
	Files  []Piece `json:"files"`
}

// Piece is the epochs [From, To), as a file of package format/epochs.
type Piece struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
	Data []byte `json:"data"`
}

// Save returns what is known of the epochs before the open one, all of which must be files already
// (Persist). The lock must be held. The error is a track.LostError when a file is damaged.
func (h *History) Save() (Saved, error) {
	ls, err := h.Leases()
	if err != nil {
		return Saved{}, err
	}
	all, err := spans(h.Dir)
	if err != nil {
		return Saved{}, err
	}
	out := Saved{Leases: ls}
	for _, sp := range all {
		set, err := h.load(sp)
		if err != nil {
			return Saved{}, err
		}
		var b bytes.Buffer
		err = epochs.Encode(&b, epochs.File{
			Generation: h.Generation, From: sp.from, To: sp.to, DiskSize: h.Size, Granularity: h.Granularity, Set: set,
		})
		if err != nil {
			return Saved{}, fmt.Errorf("track: %w", err)
		}
		out.Files = append(out.Files, Piece{sp.from, sp.to, b.Bytes()})
	}
	return out, nil
}

// TakeUp makes what was saved of a generation the beginning of this one's. The lock must be held,
// and the folder must have no history. The error is a track.LostError when a piece is not what it
// says.
func (h *History) TakeUp(s Saved, generation string) error {
	for _, p := range s.Files {
		c, err := epochs.Decode(bytes.NewReader(p.Data), int64(len(p.Data)))
		if err != nil || c.Generation != generation || c.From != p.From || c.To != p.To || c.DiskSize != h.Size || c.Granularity != h.Granularity {
			return track.Lost("what was saved of epochs %d to %d is damaged (%v)", p.From, p.To, err)
		}
		if err := h.write(span{p.From, p.To}, c.Set); err != nil {
			return err
		}
	}
	for owner, one := range s.Leases.Owners {
		if !one.Mark.Valid() || one.Epoch == 0 {
			return track.Lost("the saved mark of %q is damaged", owner)
		}
	}
	return h.save(s.Leases)
}
