package content_test

import (
	"bytes"
	"testing"

	"tidemark/test/vm/content"
)

// Every step changes something, most of them in many places and in part to zeros, and
// leaves most of it alone.
func TestStepsDiffer(t *testing.T) {
	const block = 4096
	before := content.After(0)
	for step := 1; step < content.Steps; step++ {
		now := content.After(step)
		changed, zeroed := 0, 0
		for at := 0; at < content.Size; at += block {
			if b := now[at : at+block]; !bytes.Equal(b, before[at:at+block]) {
				changed++
				if bytes.Equal(b, make([]byte, block)) {
					zeroed++
				}
			}
		}
		if last := step == content.Steps-1; last != (changed == 1) || !last && (changed < 50 || zeroed < 5 || changed > 1000) {
			t.Errorf("step %d: %d blocks changed, %d of them to zeros", step, changed, zeroed)
		}
		if !bytes.Equal(now, content.After(step)) || content.Sum(now) == content.Sum(before) {
			t.Errorf("step %d is not always the same", step)
		}
		before = now
	}
}
