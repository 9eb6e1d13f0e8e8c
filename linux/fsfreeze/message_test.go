package fsfreeze

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMessagesComeThrough(t *testing.T) {
	for _, o := range []order{{cmdSync, 0}, {cmdFreeze, 3 * time.Second}, {cmdThaw, 0}} {
		if got, err := decodeOrder(o.encode()); err != nil || got != o {
			t.Errorf("%v became %v, %v", o, got, err)
		}
	}
	r := report{evFrozen, 3, unix.EBUSY}
	if got, err := decodeReport(r.encode(), 4); err != nil || got != r {
		t.Errorf("%v became %v, %v", r, got, err)
	}
	if got, err := decodeReport(r.encode(), 3); err == nil {
		t.Errorf("a report on the fourth of three: %v", got)
	}
}

func FuzzMessages(f *testing.F) {
	f.Add(order{cmdFreeze, time.Second}.encode())
	f.Add(report{evThawed, 1, unix.EINVAL}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := decodeOrder(b); err == nil && !bytes.Equal(o.encode(), b) {
			t.Errorf("%x was read as %v", b, o)
		}
		if r, err := decodeReport(b, 8); err == nil && !bytes.Equal(r.encode(), b) {
			t.Errorf("%x was read as %v", b, r)
		}
	})
}
