package track

import (
	"tidemark/linux/bpf"
)

// verdict says how far the bitmap of one epoch can be trusted.
type verdict struct {
	epoch  uint64
	lost   bpf.Lost // but for LostAll
	misses uint64   // events that may not have been marked at all
	doubt  bool     // completions may have gone unseen
}

// judgeEpoch compares what the programs and the kernel noted with what it was
// when the epoch began.
func judgeEpoch(b *bpf.Bitmap, m bpf.Misses) verdict {
	h := b.Header()
	return verdict{
		epoch:  h.Epoch,
		lost:   b.Lost() &^ bpf.LostAll,
		misses: m.Queue - h.BaseQueue,
		doubt:  m.Complete != h.BaseComplete || b.Doubts() != 0,
	}
}

// apply carries the verdict over to a header: marks of epochs before next are
// lost when something went unmarked.
func (v verdict) apply(h bpf.Header, next uint64) bpf.Header {
	if v.lost != 0 || v.misses != 0 {
		h.Floor, h.FloorWhy, h.FloorMisses = next, uint64(v.lost), v.misses
	}
	if v.doubt {
		h.Doubted = v.epoch
	}
	return h
}
