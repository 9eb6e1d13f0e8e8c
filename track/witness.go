package track

import (
	"encoding/hex"
	"fmt"
	mathrand "math/rand/v2"
	"slices"

	"github.com/zeebo/blake3"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/era"
)

const (
	// mostWitnesses is how many blocks are remembered; a quarter is chosen anew
	// each time. Of every fourth the first bytes are remembered as well.
	mostWitnesses = 256
	bytesOfEvery  = 4
	witnessBytes  = 4096
)

// witness is one block as it was.
type witness struct {
	Block era.Block `json:"block"`
	Era   era.Era   `json:"era"`
	Sum   string    `json:"sum,omitempty"` // of its first bytes on the source
}

// unlike says in words why the metadata in a snapshot is not the lineage's; "" when
// it is. Witnesses whose bytes on the source are not what they were are returned:
// they may have been written since the snapshot was taken.
func (l lineage) unlike(now eraFacts, s eraSnapshot, source eraSource) (why string, moved []witness, err error) {
	if id := s.identity(); id != l.Identity {
		return "the metadata was made anew, or is another's", nil, nil
	}
	if s.era() <= l.Newest {
		return fmt.Sprintf("the metadata is at era %d and was at %d: it was made anew, or put back to an earlier state", s.era(), l.Newest), nil, nil
	}
	same, why, err := l.unwritten(l.Witnesses, s)
	if why != "" || err != nil {
		return why, nil, err
	}
	if len(same) == 0 && l.Identity == "" && !l.continues(now) {
		return "the device was activated again, and nothing in the metadata is as it was, so that it may be another's", nil, nil
	}
	for _, w := range same {
		sum, err := w.sumNow(now.BlockSize, source)
		if err != nil {
			return "", nil, err
		}
		if sum != w.Sum {
			moved = append(moved, w)
		}
	}
	return "", moved, nil
}

// unwritten returns the witnesses that were not written since they were noted, and
// says in words when one has an era that it cannot have.
func (l lineage) unwritten(all []witness, s eraSnapshot) (same []witness, why string, err error) {
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

// sumNow returns the sum of what the source holds now, for a witness that has one.
func (w witness) sumNow(blockSize int64, source eraSource) (string, error) {
	if w.Sum == "" {
		return "", nil
	}
	return sumOf(w.Block, blockSize, source)
}

func sumOf(b era.Block, blockSize int64, source eraSource) (string, error) {
	off := int64(b) * blockSize
	buf := block.AlignedBuffer(int(min(witnessBytes, source.size()-off)))
	if _, err := source.ReadAt(buf, off); err != nil {
		return "", fmt.Errorf("track: witness at byte %d: %w", off, err)
	}
	sum := blake3.Sum256(buf)
	return hex.EncodeToString(sum[:8]), nil
}

func blocksOf(all []witness) []era.Block {
	blocks := make([]era.Block, len(all))
	for i, w := range all {
		blocks[i] = w.Block
	}
	return blocks
}

// renew chooses witnesses from those there are and the written bytes, and notes
// them as the snapshot has them. With a source, nothing must have been in flight
// on it when the snapshot was taken; a write since shows in a later era.
func (l *lineage) renew(s eraSnapshot, written extent.Set, source eraSource) error {
	blocks := sample(blocksOf(l.Witnesses), mostWitnesses*3/4)
	blocks = append(blocks, pick(written, mostWitnesses-len(blocks), l.Facts.BlockSize)...)
	slices.Sort(blocks)
	blocks = slices.Compact(blocks)
	eras, err := s.eras(blocks)
	if err != nil {
		return err
	}
	all := make([]witness, len(blocks))
	for i, b := range blocks {
		all[i] = witness{Block: b, Era: eras[i]}
		if source == nil || i%bytesOfEvery != 0 {
			continue
		}
		if all[i].Sum, err = sumOf(b, l.Facts.BlockSize, source); err != nil {
			return err
		}
	}
	l.Witnesses, l.Era, l.Newest = all, s.era(), max(l.Newest, s.era())
	return nil
}

// sample returns at most n of the blocks.
func sample(blocks []era.Block, n int) []era.Block {
	mathrand.Shuffle(len(blocks), func(i, j int) { blocks[i], blocks[j] = blocks[j], blocks[i] })
	return blocks[:min(n, len(blocks))]
}

// pick returns at most n blocks of the set.
func pick(set extent.Set, n int, blockSize int64) []era.Block {
	total := set.Bytes()
	if total == 0 {
		return nil
	}
	places := make([]int64, n)
	for i := range places {
		places[i] = mathrand.Int64N(total)
	}
	slices.Sort(places)
	var blocks []era.Block
	passed := int64(0)
	for _, e := range set.Extents() {
		for len(places) > 0 && places[0] < passed+e.Len {
			blocks = append(blocks, era.Block((e.Off+places[0]-passed)/blockSize))
			places = places[1:]
		}
		passed += e.Len
	}
	return blocks
}
