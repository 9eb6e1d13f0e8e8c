package era

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/zeebo/blake3"

	"tidemark/extent"
	"tidemark/format/era"
)

const (
	// mostWitnesses is how many blocks are remembered; a quarter is chosen anew each
	// time. Of every fourth the first bytes are remembered as well.
	mostWitnesses = 256
	bytesOfEvery  = 4
	headBytes     = 4096
)

// witness is one block as it was.
type witness struct {
	Block era.Block `json:"block"`
	Era   era.Era   `json:"era"`
	Sum   string    `json:"sum,omitempty"` // of its first bytes on the source
}

// unlike says in words why the metadata in a snapshot is not the lineage's; "" when it
// is. Of unwritten witnesses whose bytes on the source are not what they were it returns
// one: it may have been written since the snapshot was taken.
func (l lineage) unlike(now facts, s snapshot, k kernel) (why string, moved []witness, err error) {
	if s.identity() != l.Identity {
		return "the metadata was made anew, or is another's", nil, nil
	}
	if n := uint64(s.Era()); n <= l.Newest {
		return fmt.Sprintf("the metadata is at era %d and was at %d: it was made anew, or put back to an earlier state", n, l.Newest), nil, nil
	}
	same, why, err := l.unwritten(l.Witnesses, s)
	if why != "" || err != nil {
		return why, nil, err
	}
	if len(same) == 0 && l.Identity == "" && !l.continues(now) {
		return "the device was activated again, and nothing in the metadata is as it was, so that it may be another's", nil, nil
	}
	for _, w := range same {
		if w.Sum == "" {
			continue
		}
		if sum, err := sumOf(w.Block, now.BlockSize, k); err != nil || sum != w.Sum {
			return "", []witness{w}, err
		}
	}
	return "", nil, nil
}

// unwritten returns the witnesses that were not written since they were noted, and says
// in words when one has an era that it cannot have.
func (l lineage) unwritten(all []witness, s snapshot) (same []witness, why string, err error) {
	eras, err := s.eras(blocksOf(all))
	if err != nil {
		return nil, "", err
	}
	for i, w := range all {
		switch {
		case uint64(eras[i]) >= l.Era:
		case eras[i] == w.Era:
			same = append(same, w)
		default:
			return nil, fmt.Sprintf("block %d was last written in era %d, says the metadata, which said %d: it was made anew, or put back to an earlier state",
				w.Block, eras[i], w.Era), nil
		}
	}
	return same, "", nil
}

func sumOf(b era.Block, blockSize int64, k kernel) (string, error) {
	head, err := k.head(int64(b) * blockSize)
	if err != nil {
		return "", fmt.Errorf("track: witness in block %d: %w", b, err)
	}
	sum := blake3.Sum256(head)
	return hex.EncodeToString(sum[:8]), nil
}

func blocksOf(all []witness) []era.Block {
	blocks := make([]era.Block, len(all))
	for i, w := range all {
		blocks[i] = w.Block
	}
	return blocks
}

// renew chooses witnesses from those there are and the written bytes, and notes them as
// the snapshot has them. With k their bytes are noted too: nothing must have been in
// flight when the snapshot was taken; a write since shows in a later era.
func (l *lineage) renew(s snapshot, written extent.Set, k kernel) error {
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
		w := witness{Block: b, Era: eras[i]}
		if k != nil && i%bytesOfEvery == 0 {
			if w.Sum, err = sumOf(b, l.Facts.BlockSize, k); err != nil {
				return err
			}
		}
		l.Witnesses = append(l.Witnesses, w)
	}
	l.Era, l.Newest = uint64(s.Era()), max(l.Newest, uint64(s.Era()))
	return nil
}
