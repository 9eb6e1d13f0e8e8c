package era

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"tidemark/extent"
	"tidemark/format/era"
)

// mostWitnesses is how many blocks are remembered; a quarter is chosen anew each time.
const mostWitnesses = 256

// witness is one block as it was.
type witness struct {
	Block era.Block `json:"block"`
	Era   era.Era   `json:"era"`
	// Sum is in the files of earlier versions, and is not looked at.
	Sum string `json:"sum,omitempty"`
}

// unlike says in words why the metadata in a snapshot is not the lineage's; "" when it
// is.
func (l lineage) unlike(now facts, s snapshot) (why string, err error) {
	if s.identity() != l.Identity {
		return "the metadata was made anew, or is another's", nil
	}
	if uint64(s.Era()) <= l.Newest {
		return fmt.Sprintf("the metadata is at era %d and was at %d: it was made anew, or put back to an earlier state", uint64(s.Era()), l.Newest), nil
	}
	eras, err := s.eras(blocksOf(l.Witnesses))
	if err != nil {
		return "", err
	}
	unwritten := 0
	for i, w := range l.Witnesses {
		switch {
		case uint64(eras[i]) >= l.Era:
		case eras[i] == w.Era:
			unwritten++
		default:
			return fmt.Sprintf("block %d was last written in era %d, says the metadata, which said %d: it was made anew, or put back to an earlier state",
				w.Block, eras[i], w.Era), nil
		}
	}
	if unwritten == 0 && l.Identity == "" && !l.continues(now) {
		return "the device was activated again, and nothing in the metadata is as it was, so that it may be another's", nil
	}
	return "", nil
}

func blocksOf(all []witness) []era.Block {
	blocks := make([]era.Block, len(all))
	for i, w := range all {
		blocks[i] = w.Block
	}
	return blocks
}

// renew chooses witnesses from those there are and the written bytes, and notes them as
// the snapshot has them.
func (l *lineage) renew(s snapshot, written extent.Set) error {
	blocks := blocksOf(l.Witnesses)
	rand.Shuffle(len(blocks), func(i, j int) { blocks[i], blocks[j] = blocks[j], blocks[i] })
	blocks = blocks[:min(len(blocks), mostWitnesses*3/4)]
	for all := written.Extents(); len(all) > 0 && len(blocks) < mostWitnesses; {
		e := all[rand.IntN(len(all))]
		blocks = append(blocks, era.Block((e.Off+rand.Int64N(e.Len))/l.Facts.BlockSize))
	}
	slices.Sort(blocks)
	blocks = slices.Compact(blocks)
	eras, err := s.eras(blocks)
	if err != nil {
		return err
	}
	l.Witnesses = nil
	for i, b := range blocks {
		l.Witnesses = append(l.Witnesses, witness{Block: b, Era: eras[i]})
	}
	l.Era, l.Newest = uint64(s.Era()), max(l.Newest, uint64(s.Era()))
	return nil
}
