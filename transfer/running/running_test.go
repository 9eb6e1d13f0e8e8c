package running

import (
	"testing"
	"time"

	"tidemark/transfer"
)

// A run tells of itself at most once a second, whatever it is told.
func TestProgressIsPublishedNowAndThen(t *testing.T) {
	dir := t.TempDir()
	p := New(func(transfer.Event) {})
	if err := p.Add(dir, "folder"); err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for done := range int64(1000) {
		p.Tell(transfer.Event{Phase: "copy", Done: done, Total: 1000})
	}
	p.last = time.Now().Add(-publishEvery)
	before, err := On(dir, "folder")
	if err != nil || before == nil || before.Done != 0 {
		t.Fatalf("%+v, %v", before, err)
	}
	p.Tell(transfer.Event{Phase: "copy", Done: 1000, Total: 1000})
	if after, err := On(dir, "folder"); err != nil || after == nil || after.Done != 1000 {
		t.Errorf("%+v, %v", after, err)
	}
}
