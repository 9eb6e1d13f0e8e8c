package vault

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	format "tidemark/format/vault"
	"tidemark/vault/store"
)

// Commit makes the point appear: Seal and Publish, whose point and error it returns.
func (w *Writer) Commit(p format.Point) (Point, error) {
	if err := w.Seal(p); err != nil {
		return Point{}, err
	}
	return w.Publish()
}

// Seal stores all that the point needs, with what p says of it; size, root, parent and stored
// bytes are filled in. Nobody calls Put any more. There is no point yet.
func (w *Writer) Seal(p format.Point) (err error) {
	if err := w.sound(); err != nil {
		return err
	}
	defer w.fail(&err)
	w.mu.Lock()
	defer w.mu.Unlock()
	root, err := w.finish()
	if err == nil {
		err = w.packs.flush()
	}
	if err != nil {
		if ours(err) && w.from.Base != nil { // a page or segment of the base
			err = errors.Join(w.baseIsThere(), err)
		}
		return err
	}
	p.Size, p.Root, p.Parent, p.Stored = w.from.Size, nil, "", w.packs.stored
	if !root.IsZero() {
		p.Root = &root
	}
	if w.from.Base != nil {
		p.Parent = w.from.Base.Name.String()
	}
	p.Moment = p.Moment.UTC()
	p.Tags = slices.Compact(slices.Sorted(slices.Values(p.Tags)))
	name := format.PointName{Disk: w.from.Disk, Time: p.Moment.Truncate(time.Second), ID: w.from.ID}
	if name.ID.IsZero() {
		name.ID = newID()
	}
	content, err := p.Encode()
	if err != nil {
		return err
	}
	if w.manifest, err = w.v.keys.Seal(name.String(), newSalt(), content); err != nil {
		return err
	}
	w.sealed = &Point{Name: name, Point: p}
	return nil
}

// Publish makes the sealed point appear, in one step. With an error it returns the point when that
// may have appeared all the same, as when the connection was lost or the power is about to be.
func (w *Writer) Publish() (Point, error) {
	if w.sealed == nil {
		return Point{}, errors.New("vault: the point was not sealed")
	}
	if err := w.look(); err != nil {
		return Point{}, err
	}
	if err := w.lock(); err != nil {
		return Point{}, err
	}
	name := w.sealed.Name.String()
	err := w.v.store.Put(w.ctx, name, w.manifest)
	if err != nil { // it may be there all the same: the same bytes may be put again
		if again := w.v.store.Put(w.ctx, name, w.manifest); again != nil {
			return *w.sealed, errors.Join(err, again)
		}
	}
	if err := w.lookAgain(name); err != nil {
		if errors.Is(err, ErrOvertaken) {
			err = errors.Join(err, w.v.store.Remove(w.ctx, name))
		}
		return *w.sealed, err
	}
	return *w.sealed, nil
}

// lookAgain is look by the clock of the store, once the point is there: this machine may have slept,
// or was paused so that no clock of its own tells.
func (w *Writer) lookAgain(name string) error {
	var written time.Time
	err := w.v.store.List(w.ctx, name, func(i store.Info) error {
		if i.Name == name {
			written = i.Time
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("vault: %s appeared, and may need what was removed meanwhile: verify tells: %w", name, err)
	}
	held, err := w.lease.held(w.ctx)
	if took := written.Sub(w.lease.begun); err != nil || held && took >= 0 && took < w.check {
		return err
	}
	return w.stillThere()
}

// look calls stillThere when that is due.
func (w *Writer) look() error {
	now := time.Now()
	awake, passed := now.Sub(w.looked), now.Round(0).Sub(w.looked.Round(0)) // the first stands still while the machine sleeps
	if max(awake, passed) < w.check {
		return nil
	}
	if err := w.stillThere(); err != nil {
		return err
	}
	w.looked = now
	return nil
}

// stillThere looks whether all that the point needs is still there, and not declared dead: see Prune.
func (w *Writer) stillThere() error {
	if w.from.Base != nil {
		if err := w.baseIsThere(); err != nil {
			return err
		}
	}
	newest := map[format.ID]known{}
	err := w.v.listPacks(w.ctx, format.PacksPrefix, func(k known) error {
		if old, ok := newest[k.name.ID]; !ok || old.name.Generation < k.name.Generation {
			newest[k.name.ID] = k
		}
		return nil
	})
	if err != nil {
		return err
	}
	dead, err := w.v.deadPacks(w.ctx)
	if err != nil {
		return err
	}
	for id := range w.packs.mine { // which nobody has rewritten
		if k := newest[id]; k.size == 0 || k.name.Generation > 0 || dead[k.name] {
			return fmt.Errorf("vault: pack %v: %w", id, ErrOvertaken)
		}
	}
	w.usedMu.Lock()
	defer w.usedMu.Unlock()
	for id := range w.used {
		if k := newest[id]; k.size == 0 || dead[k.name] {
			return fmt.Errorf("vault: pack %v: %w", id, ErrOvertaken)
		}
		t, err := w.v.exactTable(w.ctx, newest[id])
		if err != nil {
			return err
		}
		if !w.used.within(id, t) {
			return fmt.Errorf("vault: pack %v: %w", id, ErrOvertaken)
		}
	}
	return nil
}

// finish writes all pages, and returns the root. w.mu is held.
func (w *Writer) finish() (format.Ref, error) {
	if err := w.endRun(); err != nil {
		return format.Ref{}, err
	}
	if w.from.Size == 0 {
		return format.Ref{}, nil
	}
	if w.from.Size < w.base.size { // what lies behind the end goes
		last := (w.from.Size - 1) / format.LeafSize
		end := w.from.Size - last*format.LeafSize
		if end < format.LeafSize {
			w.edits[last] = w.edits[last].put(format.Entry{Off: end, Len: format.LeafSize - end})
		}
	}
	if err := w.endLeaves(); err != nil {
		return format.Ref{}, err
	}
	for level := 1; level < len(w.pages); level++ {
		if err := w.endLevel(level); err != nil {
			return format.Ref{}, err
		}
	}
	return w.page(len(w.pages)-1, 0)
}

// page returns the page of that level and number as it is now. w.mu is held.
func (w *Writer) page(level int, number int64) (format.Ref, error) {
	if ref, ok := w.pages[level][number]; ok {
		return ref, nil
	}
	n, err := w.base.at(w.ctx, level, number*format.Covers(level))
	if n.above && err == nil {
		err = fmt.Errorf("vault: page %d of level %d was not made", number, level) // a bug of ours
	}
	return n.ref, err
}

// endLevel writes the inner pages of a level below which something changed, or which the smaller
// base does not have, or whose end lies within them. w.mu is held.
func (w *Writer) endLevel(level int) error {
	changed := map[int64][]int64{} // pages of the level below, by page of this one
	for child := range w.pages[level-1] {
		changed[child/format.Fanout] = append(changed[child/format.Fanout], child)
	}
	if base := format.Level(w.base.size); level > base && w.base.size > 0 {
		changed[0] = append(changed[0], 0)
	}
	if w.from.Size < w.base.size {
		last := (w.from.Size - 1) / format.Covers(level-1)
		changed[last/format.Fanout] = append(changed[last/format.Fanout], last)
	}
	for _, number := range slices.Sorted(maps.Keys(changed)) {
		if err := w.endInner(level, number, changed[number]); err != nil {
			return err
		}
	}
	return nil
}

func (w *Writer) endInner(level int, number int64, changed []int64) error {
	n, err := w.base.at(w.ctx, level, number*format.Covers(level))
	if err != nil {
		return err
	}
	old := new(format.Inner)
	if !n.ref.IsZero() {
		if old, err = w.v.inner(w.ctx, n.ref, level); err != nil {
			return err
		}
	}
	page := *old
	for _, child := range changed {
		if page[child%format.Fanout], err = w.page(level-1, child); err != nil {
			return err
		}
	}
	for i := range page {
		if (number*format.Fanout+int64(i))*format.Covers(level-1) >= w.from.Size {
			page[i] = format.Ref{}
		}
	}
	switch page {
	case *old:
		w.pages[level][number] = n.ref
		return nil
	case format.Inner{}:
		w.pages[level][number] = format.Ref{}
		return nil
	}
	b, err := page.Encode(level)
	if err != nil {
		return err
	}
	w.pages[level][number], err = w.packs.add(format.Page, b, nil, format.Hash{})
	return err
}

// endLeaves writes the leaf pages in which something changed. w.mu is held.
func (w *Writer) endLeaves() error {
	changed := w.edits
	w.edits, w.held = map[int64]edits{}, 0
	for _, number := range slices.Sorted(maps.Keys(changed)) {
		if err := w.endLeaf(number, changed[number]); err != nil {
			return err
		}
	}
	return nil
}

func (w *Writer) endLeaf(number int64, changed edits) error {
	old, err := w.oldLeaf(number)
	if err != nil {
		return err
	}
	page := changed.over(old)
	switch {
	case len(page) > w.may.entries:
		page, err = w.rechunk(page, number*format.LeafSize)
	case int64(len(page)) > w.may.segments:
		page, err = w.gather(page)
	}
	if err != nil {
		return err
	}
	switch {
	case slices.Equal(page, old):
		return nil
	case len(page) == 0:
		w.pages[0][number] = format.Ref{}
		return nil
	}
	b, err := page.Encode()
	if err != nil {
		return err
	}
	w.pages[0][number], err = w.packs.add(format.Page, b, nil, format.Hash{})
	return err
}

// oldLeaf returns a leaf page as it was before, or as it was written earlier.
func (w *Writer) oldLeaf(number int64) (format.Leaf, error) {
	ref, ok := w.pages[0][number]
	switch {
	case !ok:
		return w.base.leafAt(w.ctx, number*format.LeafSize)
	case ref.IsZero():
		return nil, nil
	}
	b, err := w.packs.page(ref)
	if err != nil {
		return nil, err
	}
	return format.DecodeLeaf(b)
}
