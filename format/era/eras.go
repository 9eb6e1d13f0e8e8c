package era

import "fmt"

// Eras returns, for each of some data blocks in ascending order, the newest era
// in which it was written; 0 is never. It reads only the metadata that tells
// about these blocks. It fails for a block beyond the device, and at the first
// fault.
func (v *View) Eras(at []Block) ([]Era, error) {
	writesets, err := v.Writesets()
	if err != nil {
		return nil, err
	}
	out := make([]Era, len(at))
	if err := v.arrayEras(at, out); err != nil {
		return nil, err
	}
	for _, w := range writesets {
		if err := v.raiseMarked(w, at, out); err != nil {
			return nil, fmt.Errorf("era: writeset of era %d: %w", w.Era, err)
		}
	}
	return out, nil
}

// arrayEras fills out with what the era array says.
func (v *View) arrayEras(at []Block, out []Era) error {
	a := newArray(&v.dev, "era array", eraWidth, nil)
	for i := 0; i < len(at); {
		if at[i] >= Block(v.super.NrBlocks) {
			return fmt.Errorf("era: block %d: the device has %d", at[i], v.super.NrBlocks)
		}
		a.block = func(index uint64, values []byte) error {
			for ; i < len(at) && uint64(at[i])/erasPerBlock == index; i++ {
				offset := uint64(at[i]) % erasPerBlock * eraWidth
				if offset+eraWidth > uint64(len(values)) {
					return fmt.Errorf("era: block %d: the device has %d", at[i], v.super.NrBlocks)
				}
				out[i] = Era(le.Uint32(values[offset:]))
			}
			return nil
		}
		index := uint64(at[i]) / erasPerBlock
		if err := a.read(v.super.EraArray, uint64(v.super.NrBlocks), span{index, index + 1}); err != nil {
			return err
		}
	}
	return nil
}

// raiseMarked sets out to the writeset's era where it is marked and newer.
func (v *View) raiseMarked(w Writeset, at []Block, out []Era) error {
	a := newArray(&v.dev, "writeset", wordWidth, nil)
	for i := 0; i < len(at) && uint32(at[i]) < w.Bits; {
		a.block = func(index uint64, values []byte) error {
			for ; i < len(at) && uint32(at[i]) < w.Bits && uint64(at[i])/bitsPerBlock == index; i++ {
				bit := uint64(at[i]) % bitsPerBlock
				if le.Uint64(values[bit/64*wordWidth:])>>(bit%64)&1 != 0 {
					out[i] = max(out[i], w.Era)
				}
			}
			return nil
		}
		index := uint64(at[i]) / bitsPerBlock
		if err := a.read(w.Root, ceilDiv(uint64(w.Bits), 64), span{index, index + 1}); err != nil {
			return err
		}
	}
	return nil
}
