// Package faultdisk is a disk for tests that forgets what was not synced.
//
// A World holds the files of a folder and one target. It counts every operation
// that changes something; at a chosen one it fails, or the power is cut: then
// every later operation fails until Restart, which keeps of the writes that were
// not synced any subset, each of them whole, in part or not at all, and of the
// renames and removals that were not synced any first part. That is more than a
// real disk does to us, and nothing less.
//
// Change.Crash does all of that to a change of a target, at every operation.
//
// It serves one goroutine's plan: the operations themselves may come from
// several.
package faultdisk

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"

	"tidemark/extent"
	"tidemark/transfer/transaction"
)

var (
	// ErrPowerCut is what every operation returns from the cut to the restart.
	ErrPowerCut = errors.New("faultdisk: power cut")
	// ErrInjected is what the operation chosen to fail returns.
	ErrInjected = errors.New("faultdisk: injected failure")
)

const sector = 512

// World is a folder and a target on disks that lose power together.
type World struct {
	mu      sync.Mutex
	rng     *rand.Rand
	ops     int
	cutAt   int
	failAt  int
	off     bool
	names   map[string]*inode
	durable map[string]*inode
	pending []func(map[string]*inode)
	target  *inode
	inode   uint64 // of the target
	tick    int64  // how many times of the clock are one
	clock   int64
	mtime   int64 // of the target
	synced  int64 // its mtime when it was last synced
}

// New returns an empty folder and an empty target.
func New(rng *rand.Rand) *World {
	return &World{rng: rng, names: map[string]*inode{}, durable: map[string]*inode{}, target: &inode{}, cutAt: -1, failAt: -1, inode: 1, tick: 1, clock: 1, mtime: 1, synced: 1}
}

// CutAfter cuts the power in the middle of the nth change from now, counted from
// zero.
func (w *World) CutAfter(n int) { w.ops, w.cutAt, w.failAt = 0, n, -1 }

// FailAfter makes the nth change from now fail, counted from zero.
func (w *World) FailAfter(n int) { w.ops, w.cutAt, w.failAt = 0, -1, n }

// Calm ends what CutAfter and FailAfter planned.
func (w *World) Calm() { w.cutAt, w.failAt = -1, -1 }

// Ops returns how many changes there were since the last plan.
func (w *World) Ops() int { return w.ops }

// IsOff reports whether the power is cut.
func (w *World) IsOff() bool { return w.off }

// Content returns what the target holds.
func (w *World) Content() []byte { return append([]byte(nil), w.target.now...) }

// Coarse gives the clock steps, each as long as n changes of the target.
func (w *World) Coarse(n int64) { w.tick = n }

// Replace puts a copy of the target in its place, as another program would.
func (w *World) Replace() {
	w.inode++
	w.touch()
	w.synced = w.mtime
}

// Scribble changes the target as another program would.
func (w *World) Scribble(off int, p []byte) {
	w.target.apply(write{off: int64(off), data: append([]byte(nil), p...), size: -1})
	w.target.keep()
	w.touch()
	w.synced = w.mtime
}

// Stretch gives the target another size as another program would.
func (w *World) Stretch(size int) {
	w.target.apply(write{size: int64(size)})
	w.target.keep()
	w.touch()
	w.synced = w.mtime
}

// Spoil changes a byte of a file of the folder, durably, if the file is there.
func (w *World) Spoil(name string, off int) bool {
	f, ok := w.names[name]
	if !ok || len(f.now) == 0 {
		return false
	}
	at := off % len(f.now)
	f.apply(write{off: int64(at), data: []byte{f.now[at] ^ 1<<(off%8)}, size: -1})
	f.keep()
	return true
}

// Restart ends a power cut; see the package comment for what is left.
func (w *World) Restart() {
	w.Calm()
	w.off = false
	for _, op := range w.pending[:w.rng.IntN(len(w.pending)+1)] {
		op(w.durable)
	}
	w.pending = nil
	w.names = map[string]*inode{}
	for name, f := range w.durable {
		w.names[name] = f
		f.lose(w.rng)
	}
	w.target.lose(w.rng)
	if w.rng.IntN(2) == 0 {
		w.mtime = w.synced
	}
	w.synced = w.mtime
}

// step counts one change and decides its fate. w.mu is held.
func (w *World) step() error {
	if w.off {
		return ErrPowerCut
	}
	n := w.ops
	w.ops++
	switch n {
	case w.cutAt:
		w.off = true
		return ErrPowerCut
	case w.failAt:
		return ErrInjected
	}
	return nil
}

func (w *World) touch() {
	w.clock++
	w.mtime = w.clock / w.tick
}

// inode is the content of a file, as it reads and as it would survive.
type inode struct {
	now    []byte
	safe   []byte
	writes []write
}

type write struct {
	off  int64
	data []byte
	size int64 // of a truncation, or -1
}

func (f *inode) apply(wr write) { f.now = wr.on(f.now); f.writes = append(f.writes, wr) }

func (wr write) on(b []byte) []byte {
	if wr.size >= 0 {
		if int64(len(b)) > wr.size {
			return b[:wr.size:wr.size]
		}
		return append(b, make([]byte, wr.size-int64(len(b)))...)
	}
	if end := wr.off + int64(len(wr.data)); end > int64(len(b)) {
		b = append(b, make([]byte, end-int64(len(b)))...)
	}
	copy(b[wr.off:], wr.data)
	return b
}

func (f *inode) keep() {
	for _, wr := range f.writes {
		f.safe = wr.on(f.safe)
	}
	f.writes = nil
}

// fail is what a sync that fails does: it loses what it should have written, and
// reports that once. What was lost may go on being read from memory.
func (f *inode) fail(rng *rand.Rand) {
	memory := f.now
	f.lose(rng)
	if rng.IntN(2) == 0 {
		f.now = memory
	}
}

// reread forgets what is in memory only.
func (f *inode) reread() {
	f.keep()
	f.now = append(f.now[:0:0], f.safe...)
}

// lose keeps any subset of the writes that were not synced.
func (f *inode) lose(rng *rand.Rand) {
	mode := rng.IntN(4)
	for _, wr := range f.writes {
		switch {
		case mode == 0 || mode == 1 && rng.IntN(2) == 0:
			continue
		case mode == 2 && wr.size < 0 && len(wr.data) > sector && rng.IntN(2) == 0:
			wr.data = wr.data[:rng.IntN(len(wr.data)/sector)*sector]
		}
		f.safe = wr.on(f.safe)
	}
	f.now = append(f.now[:0:0], f.safe...)
	f.writes = nil
}

func (f *inode) readAt(p []byte, off int64) (int, error) {
	if off >= int64(len(f.now)) {
		return 0, io.EOF
	}
	n := copy(p, f.now[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Folder returns the folder.
func (w *World) Folder() transaction.Folder { return folder{w} }

type folder struct{ w *World }

func (d folder) Open(name string, create bool) (transaction.File, error) {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if d.w.off {
		return nil, ErrPowerCut
	}
	f, ok := d.w.names[name]
	if !ok && !create {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	if create {
		if err := d.w.step(); err != nil {
			return nil, err
		}
	}
	if !ok {
		f = &inode{}
		d.w.change(func(m map[string]*inode) { m[name] = f })
	} else if create {
		f.apply(write{size: 0})
	}
	return file{d.w, f}, nil
}

// change alters the names now, and durably once the folder is synced.
func (w *World) change(op func(map[string]*inode)) {
	op(w.names)
	w.pending = append(w.pending, op)
}

func (d folder) Rename(from, to string) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if err := d.w.step(); err != nil {
		return err
	}
	f, ok := d.w.names[from]
	if !ok {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	d.w.change(func(m map[string]*inode) { delete(m, from); m[to] = f })
	return nil
}

func (d folder) Remove(name string) error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if _, ok := d.w.names[name]; !ok && !d.w.off {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	if err := d.w.step(); err != nil {
		return err
	}
	d.w.change(func(m map[string]*inode) { delete(m, name) })
	return nil
}

func (d folder) Sync() error {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if err := d.w.step(); err != nil {
		return err
	}
	for _, op := range d.w.pending {
		op(d.w.durable)
	}
	d.w.pending = nil
	return nil
}

// Now tells the time. Each look at the clock is a change later than the one before.
func (d folder) Now(transaction.Target) (int64, bool) {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	d.w.clock++
	return d.w.clock / d.w.tick, true
}

type file struct {
	w *World
	f *inode
}

func (f file) ReadAt(p []byte, off int64) (int, error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if f.w.off {
		return 0, ErrPowerCut
	}
	return f.f.readAt(p, off)
}

// writeAt makes the write that the power is cut in a write that may be lost.
func (w *World) writeAt(f *inode, p []byte, off int64) error {
	wasOff := w.off
	err := w.step()
	if err == nil || w.off && !wasOff {
		f.apply(write{off: off, data: append([]byte(nil), p...), size: -1})
	}
	return err
}

func (f file) WriteAt(p []byte, off int64) (int, error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if err := f.w.writeAt(f.f, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f file) Size() (int64, error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	return int64(len(f.f.now)), nil
}

func (f file) Sync() error {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if err := f.w.step(); err != nil {
		if errors.Is(err, ErrInjected) {
			f.f.fail(f.w.rng)
		}
		return err
	}
	f.f.keep()
	return nil
}

// Reread makes reads come from the disk.
func (f file) Reread() error {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if f.w.off {
		return ErrPowerCut
	}
	f.f.reread()
	return nil
}

func (f file) Close() error { return nil }

// Target returns the target.
func (w *World) Target() transaction.Target { return target{w} }

type target struct{ w *World }

func (t target) ReadAt(p []byte, off int64) (int, error) {
	return file{t.w, t.w.target}.ReadAt(p, off)
}

func (t target) WriteAt(p []byte, off int64) (int, error) {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	t.w.touch()
	if err := t.w.writeAt(t.w.target, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (t target) Zero(e extent.Extent) error {
	_, err := t.WriteAt(make([]byte, e.Len), e.Off)
	return err
}

func (t target) Resize(size int64) error {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	if err := t.w.step(); err != nil {
		return err
	}
	if size != int64(len(t.w.target.now)) {
		t.w.touch()
		t.w.target.apply(write{size: size})
	}
	return nil
}

func (t target) Reserve(extent.Extent) error {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	return t.w.step()
}

func (t target) Sync() error {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	if err := t.w.step(); err != nil {
		if errors.Is(err, ErrInjected) {
			t.w.target.fail(t.w.rng)
		}
		return err
	}
	t.w.target.keep()
	t.w.synced = t.w.mtime
	return nil
}

// Reread makes reads come from the disk.
func (t target) Reread() error { return file{t.w, t.w.target}.Reread() }

func (t target) Stamp() (transaction.Stamp, error) {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	if t.w.off {
		return transaction.Stamp{}, ErrPowerCut
	}
	return transaction.Stamp{
		Kind: transaction.Image, Size: int64(len(t.w.target.now)), Inode: t.w.inode,
		MTime: t.w.mtime, CTime: t.w.mtime, BTime: int64(t.w.inode),
	}, nil
}
