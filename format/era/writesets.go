package era

import (
	"fmt"

	"tidemark/format/pdata"
)

// Writeset describes the blocks written in one era that is not digested yet.
type Writeset struct {
	Era  Era    `json:"era"`
	Bits uint32 `json:"bits"` // differs from the device's blocks after a resize
	Root Addr   `json:"root"`
	// Current marks the writeset that is in use, or was at a power cut.
	Current bool `json:"current,omitempty"`
}

// Writesets returns the writesets in order of era, the current one last.
func (v *View) Writesets() ([]Writeset, error) {
	return v.writesets(pdata.NewBitmap(v.dev.Blocks), nil)
}

// writesets lists the writesets and adds their roots to seen. lost gets the eras
// that a fault hides; when it is nil the first fault is returned.
func (v *View) writesets(seen pdata.Bitmap, lost func(eras pdata.Span, f *Fault) error) ([]Writeset, error) {
	l := lister{view: v, seen: seen, lost: lost}
	t := pdata.Tree{Dev: &v.dev, ValueSize: writesetWidth, Leaf: l.leaf, Lost: l.lose}
	if err := t.Walk(v.super.WritesetTree, pdata.AllKeys()); err != nil {
		return nil, err
	}
	if v.Clean() {
		return l.list, nil
	}
	err := l.add(uint64(v.super.Era), Writeset{Bits: v.super.CurrentBits, Root: v.super.CurrentRoot, Current: true})
	return l.list, err
}

// lister collects writesets. Every writeset has a root of its own, so the list
// cannot outgrow the metadata.
type lister struct {
	view *View
	seen pdata.Bitmap
	lost func(eras pdata.Span, f *Fault) error
	list []Writeset
}

func (l *lister) lose(eras pdata.Span, f *Fault) error {
	if l.lost == nil {
		return f
	}
	f.Effect = fmt.Sprintf("writesets of eras %d to %d", eras.Lo, min(eras.Hi-1, uint64(l.view.super.Era)))
	return l.lost(eras, f)
}

func (l *lister) leaf(n pdata.TreeNode, i, j int) error {
	for ; i < j; i++ {
		v := n.Value(i)
		if err := l.add(n.Key(i), Writeset{Bits: le.Uint32(v), Root: Addr(le.Uint64(v[4:]))}); err != nil {
			return err
		}
	}
	return nil
}

func (l *lister) add(key uint64, w Writeset) error {
	if err := l.check(key, w); err != nil {
		return l.lose(pdata.Span{Lo: key, Hi: key + 1}, pdata.AsFault(err))
	}
	w.Era = Era(key)
	l.list = append(l.list, w)
	return nil
}

func (l *lister) check(key uint64, w Writeset) error {
	const o = "writeset"
	if err := l.view.dev.Inside(w.Root, o); err != nil {
		return err
	}
	if key != uint64(Era(key)) {
		return damage(w.Root, o, "era %d does not fit in 32 bits", key)
	}
	if n := len(l.list); n > 0 && uint64(l.list[n-1].Era) >= key {
		return damage(w.Root, o, "current era %d is not above archived era %d", key, l.list[n-1].Era)
	}
	if w.Bits >= maxNrBlocks {
		return damage(w.Root, o, "%d bits, the limit is %d", w.Bits, maxNrBlocks-1)
	}
	if !l.seen.Add(uint64(w.Root)) {
		return damage(w.Root, o, "block %d is used twice", w.Root)
	}
	return nil
}
