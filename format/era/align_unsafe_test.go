package era

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"unsafe"
)

// direct is a device opened with O_DIRECT: it takes whole blocks in aligned
// memory only.
type direct struct {
	t testing.TB
	io.ReaderAt
	io.WriterAt
}

func (d direct) check(p []byte, off int64) {
	if uintptr(unsafe.Pointer(unsafe.SliceData(p)))%BlockSize != 0 || off%BlockSize != 0 || len(p)%BlockSize != 0 {
		d.t.Errorf("%d bytes at %d in memory at %p are not aligned", len(p), off, p)
	}
}

func (d direct) ReadAt(p []byte, off int64) (int, error) {
	d.check(p, off)
	return d.ReaderAt.ReadAt(p, off)
}

func (d direct) WriteAt(p []byte, off int64) (int, error) {
	d.check(p, off)
	return d.WriterAt.WriteAt(p, off)
}

func TestAllInputAndOutputSuitsDirectIO(t *testing.T) {
	for _, c := range goodCases(t) {
		if c.open(t).super.NrBlocks > fuzzBlocks/2 {
			continue
		}
		r := direct{t: t, ReaderAt: bytes.NewReader(c.image)}
		size := int64(len(c.image))
		if _, err := Check(r, size, func(*Fault) {}); err != nil {
			t.Fatal(err)
		}
		m, err := Open(r, size)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := changedXML(m.Live(), Query{}); err != nil {
			t.Fatal(err)
		}
		xml, err := dumpXML(m.Live(), DumpOptions{Logical: true})
		if err != nil {
			t.Fatal(err)
		}
		w := direct{t: t, WriterAt: make(memory, size)}
		if err := Restore(strings.NewReader(xml), w, size); err != nil {
			t.Fatal(err)
		}
	}
}
