package snapstore

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
)

// numbers tells which numbers were added twice. It keeps them in batches, each sorted and
// written as the distances between neighbours: that is about two bytes for a number, and
// nothing is moved again when more come.
type numbers struct {
	batch   []uint64
	kept    []distances
	scratch distances
}

const batchSize = 1 << 18

func (n *numbers) add(v uint64) {
	if n.batch = append(n.batch, v); len(n.batch) == batchSize {
		n.keep()
	}
}

func (n *numbers) empty() bool { return len(n.batch) == 0 && len(n.kept) == 0 }

// keep ends a batch.
func (n *numbers) keep() {
	slices.Sort(n.batch)
	d, last := n.scratch[:0], uint64(0)
	for _, v := range n.batch {
		d = binary.AppendUvarint(d, v-last)
		last = v
	}
	n.kept, n.scratch, n.batch = append(n.kept, bytes.Clone(d)), d, n.batch[:0]
}

// twice returns what was added more than once. Nothing can be added after it.
func (n *numbers) twice() *roaring64.Bitmap {
	if len(n.batch) > 0 {
		n.keep()
	}
	var m merger
	for _, d := range n.kept {
		h := head{rest: d}
		h.next()
		m = append(m, h)
	}
	slices.SortFunc(m, func(a, b head) int { return cmp.Compare(a.least, b.least) })
	again := roaring64.New()
	last, any := uint64(0), false
	for ; len(m) > 0; m = m.next() {
		if any && m[0].least == last {
			again.Add(last)
		}
		last, any = m[0].least, true
	}
	return again
}

// distances are sorted numbers, each written as its distance from the one before.
type distances []byte

// head is the least of sorted numbers, and the rest of them.
type head struct {
	least uint64
	rest  distances
}

// next goes on to the next number; it reports whether there is one.
func (h *head) next() bool {
	d, n := binary.Uvarint(h.rest)
	h.least, h.rest = h.least+d, h.rest[n:]
	return n > 0
}

// merger is a heap of heads, the one with the least number first.
type merger []head

// next drops the least number.
func (m merger) next() merger {
	top := m[0]
	if !top.next() {
		top, m = m[len(m)-1], m[:len(m)-1]
	}
	at := 0
	for child := 1; child < len(m); child = 2*at + 1 {
		if right := child + 1; right < len(m) && m[right].least < m[child].least {
			child = right
		}
		if top.least <= m[child].least {
			break
		}
		m[at], at = m[child], child
	}
	if len(m) > 0 {
		m[at] = top
	}
	return m
}
