package era

import (
	"fmt"
	"slices"

	"tidemark/format/pdata"
)

// Eras returns, for each of some data blocks in ascending order, the newest era in which
// the block was written; 0 is never. It reads only the metadata of these blocks. It fails
// for a block beyond the device, and at the first fault.
func (v *View) Eras(at []Block) ([]Era, error) {
	n := v.super.NrBlocks
	if len(at) > 0 && (!slices.IsSorted(at) || uint32(at[len(at)-1]) >= n) {
		return nil, fmt.Errorf("era: blocks up to %d: want ascending ones, and the device has %d", at[len(at)-1], n)
	}
	writesets, err := v.Writesets()
	if err != nil {
		return nil, err
	}
	out := make([]Era, len(at))
	array := pdata.NewArray(&v.dev, "era array", eraWidth, nil)
	err = pick(array, v.super.EraArray, uint64(n), erasPerBlock, at, func(i int, k uint64, values []byte) {
		out[i] = Era(le.Uint32(values[k*eraWidth:]))
	})
	if err != nil {
		return nil, err
	}
	for _, w := range writesets {
		bits := pdata.NewArray(&v.dev, "writeset", wordWidth, nil)
		within, _ := slices.BinarySearch(at, Block(w.Bits))
		err := pick(bits, w.Root, uint64(w.Bits), bitsPerBlock, at[:within], func(i int, k uint64, values []byte) {
			if le.Uint64(values[k/64*wordWidth:])>>(k%64)&1 != 0 {
				out[i] = max(out[i], w.Era)
			}
		})
		if err != nil {
			return nil, fmt.Errorf("era: writeset of era %d: %w", w.Era, err)
		}
	}
	return out, nil
}

// pick reads the array blocks of some data blocks, which ascend and lie inside the array.
// each gets the index of a data block, its place among the per data blocks of the array
// block, and the values of that.
func pick(a *pdata.Array, root Addr, data, per uint64, at []Block, each func(i int, k uint64, values []byte)) error {
	i := 0
	a.Block = func(index uint64, values []byte) error {
		for ; i < len(at) && uint64(at[i])/per == index; i++ {
			each(i, uint64(at[i])%per, values)
		}
		return nil
	}
	for i < len(at) {
		index := uint64(at[i]) / per
		if err := a.Read(root, data, pdata.Span{Lo: index, Hi: index + 1}); err != nil {
			return err
		}
	}
	return nil
}
