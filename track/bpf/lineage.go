package bpf

import (
	"slices"
	"strings"

	"tidemark/track/history"
)

// ancestor is the generation of an earlier boot, which was saved when it was shut down and taken
// up by the next. Every boot has a generation of its own: when a record is restored, what went on
// from it the first time and what goes on from it now are told apart.
type ancestor struct {
	Generation string `json:"generation"`
	Last       uint64 `json:"last"` // epoch that was open when it was saved
}

// knows reports whether a mark is of this generation, or of one that it took up.
func (r record) knows(m history.Moment) bool {
	return m.Generation == r.Generation || slices.ContainsFunc(r.Ancestors, func(a ancestor) bool {
		return m.Generation == a.Generation && m.Epoch <= a.Last
	})
}

// descends returns the ancestors of what takes the record up, those of whose marks one is kept.
func (r record) descends(last uint64, ls history.Leases) []ancestor {
	all := append(slices.Clone(r.Ancestors), ancestor{r.Generation, last})
	return slices.DeleteFunc(all, func(a ancestor) bool {
		for _, one := range ls.Owners {
			if strings.HasPrefix(one.Mark.Body(), a.Generation+":") {
				return false
			}
		}
		return true
	})
}
