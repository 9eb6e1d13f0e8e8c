package era

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// whole collects the era array of a dump.
type whole struct{ eras []Era }

func (w *whole) Begin(Header) error              { return nil }
func (w *whole) BeginWriteset(Era, uint32) error { return nil }
func (w *whole) Bits([]uint64, int) error        { return nil }
func (w *whole) EndWriteset() error              { return nil }
func (w *whole) BeginArray() error               { return nil }
func (w *whole) Eras(eras []Era) error           { w.eras = append(w.eras, eras...); return nil }
func (w *whole) EndArray() error                 { return nil }
func (w *whole) End() error                      { return nil }

func TestErasOfSomeBlocksAreThoseOfALogicalDump(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, c := range goodCases(t) {
		t.Run(c.name, func(t *testing.T) {
			v := c.open(t).Live()
			var all whole
			if err := v.Dump(&all, DumpOptions{Logical: true}); err != nil {
				t.Fatal(err)
			}
			n := len(all.eras)
			if n == 0 {
				return
			}
			at := []Block{0, Block(n - 1)}
			for range min(n, 500) {
				at = append(at, Block(random.IntN(n)))
			}
			slices.Sort(at)
			got, err := v.Eras(at)
			if err != nil {
				t.Fatal(err)
			}
			for i, b := range at {
				if got[i] != all.eras[b] {
					t.Fatalf("block %d: era %d, want %d", b, got[i], all.eras[b])
				}
			}
			if _, err := v.Eras([]Block{Block(n)}); err == nil {
				t.Error("a block beyond the device has an era")
			}
			if _, err := v.Eras([]Block{1, 0}); err == nil {
				t.Error("blocks that descend have eras")
			}
		})
	}
}
