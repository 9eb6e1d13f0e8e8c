package bpf_test

import (
	"testing"

	"tidemark/track"
	"tidemark/track/bpf"
)

// flying is a write to a slow disk that the test lets go step by step.
type flying struct {
	started chan struct{} // closed when the disk has the write, before it takes effect
	effect  chan struct{} // close it to let the write take effect
	changed chan struct{} // closed when it has
	answer  chan struct{} // close it to let the write end
	ended   chan struct{} // closed when it has
}

const flyingAt = 1 << 20

// fly begins a write of 4096 bytes at flyingAt.
func fly(t *testing.T) (dev string, im *image, w *flying) {
	t.Helper()
	w = &flying{make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})}
	dev, im = slowDisk(t, 16<<20, func(_ int64, _ int, apply func()) {
		close(w.started)
		<-w.effect
		apply()
		close(w.changed)
		<-w.answer
	})
	return dev, im, w
}

func (w *flying) begin(t *testing.T, dev string) {
	go func() {
		defer close(w.ended)
		write(t, dev, flyingAt, 4096, 0xaa)
	}()
	<-w.started
}

func wantIn(t *testing.T, l *bpf.Tracker, since, until track.Mark, off int64, why string) {
	t.Helper()
	set, err := l.Changes(t.Context(), since, until)
	if err != nil {
		t.Fatal(err)
	}
	if !set.Contains(off) {
		t.Errorf("lost write: the block at %d is not in the changes from %s to %s (%v), but %s", off, since, until, set.Extents(), why)
	}
}

// Fails when blocks are no longer marked at completion.
func TestWriteQueuedBeforeAMarkAndDoneAfterIsAChangeSinceTheMark(t *testing.T) {
	dev, im, w := fly(t)
	l := open(t, dev, places(t))
	w.begin(t, dev)
	w.landsAfterAMark(t, l, im, "the write was in flight at the first")
}

// Fails when the completion of a request whose issue nobody saw is left out.
func TestWriteInFlightWhenTrackingBeginsIsAChange(t *testing.T) {
	dev, im, w := fly(t)
	w.begin(t, dev)
	l := open(t, dev, places(t))
	w.landsAfterAMark(t, l, im, "the write was in flight when tracking began")
}

// landsAfterAMark lets the write that has begun take effect and end between two marks.
func (w *flying) landsAfterAMark(t *testing.T, l *bpf.Tracker, im *image, why string) {
	t.Helper()
	m1 := cut(t, l)
	before := im.at(flyingAt)
	close(w.effect)
	<-w.changed
	close(w.answer)
	<-w.ended
	m2 := cut(t, l)
	if after := im.at(flyingAt); before == after {
		t.Fatalf("the content did not change between the marks: %#x", after)
	}
	wantIn(t, l, m1, m2, flyingAt, "its content changed between them: "+why)
}

// Fails when blocks are no longer marked when they are queued.
func TestWriteDoneBeforeAMarkButAnsweredAfterIsAChangeUntilTheMark(t *testing.T) {
	dev, im, w := fly(t)
	l := open(t, dev, places(t))
	m0 := cut(t, l)
	before := im.at(flyingAt)
	w.begin(t, dev)
	close(w.effect)
	<-w.changed
	if after := im.at(flyingAt); before == after {
		t.Fatalf("the content did not change before the mark: %#x", after)
	}
	m1 := cut(t, l)
	close(w.answer)
	<-w.ended
	wantIn(t, l, m0, m1, flyingAt, "its content changed between them: only the answer came after the second")
}
