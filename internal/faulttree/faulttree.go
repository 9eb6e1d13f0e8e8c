// Package faulttree is a tree of files for tests that forgets what was not synced.
//
// A World counts every call that changes something. At a chosen one it fails, or the power is
// cut: then every later call fails until Restart, which keeps of files that were not synced
// any first part, and of the names made, changed and removed in folders that were not synced
// any first part of all of them. A folder whose own name did not survive is gone with all that
// was in it. That is more than a real disk does to us, and nothing less.
package faulttree

import (
	"errors"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"tidemark/vault/store"
)

var (
	// ErrPowerCut is what every call returns from the cut to the restart.
	ErrPowerCut = errors.New("faulttree: power cut")
	// ErrInjected is what the call chosen to fail returns.
	ErrInjected = errors.New("faulttree: injected failure")
)

// World is a tree of files on a disk that can lose power.
type World struct {
	mu            sync.Mutex
	rng           *rand.Rand
	ops           int
	cutAt, failAt int
	off           bool
	now, safe     map[string]*inode // by path; a folder is a nil inode
	pending       []change
	clock         time.Time
}

// change is one of names that no sync has made safe.
type change struct {
	dir string // synced, it makes the change safe
	do  func(names map[string]*inode)
}

type inode struct {
	data   []byte
	synced int // bytes that survive
	time   time.Time
}

// New returns a tree with nothing in it.
func New(rng *rand.Rand) *World {
	w := &World{rng: rng, cutAt: -1, failAt: -1, clock: time.Unix(1e9, 0)}
	w.now, w.safe = map[string]*inode{".": nil}, map[string]*inode{".": nil}
	return w
}

// CutAfter cuts the power in the middle of the nth change from now, counted from zero.
func (w *World) CutAfter(n int) { w.ops, w.cutAt, w.failAt = 0, n, -1 }

// FailAfter makes the nth change from now fail, counted from zero.
func (w *World) FailAfter(n int) { w.ops, w.cutAt, w.failAt = 0, -1, n }

// Calm ends what CutAfter and FailAfter planned.
func (w *World) Calm() { w.cutAt, w.failAt = -1, -1 }

// IsOff reports whether the power is cut.
func (w *World) IsOff() bool { return w.off }

// Pass lets time pass.
func (w *World) Pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clock = w.clock.Add(d)
}

// Spoil flips a bit of a file.
func (w *World) Spoil(name string, bit int) {
	f := w.now[name]
	f.data = slices.Clone(f.data)
	f.data[bit/8%len(f.data)] ^= 1 << (bit % 8)
}

// Restart ends a power cut; see the package comment for what is left.
func (w *World) Restart() {
	w.Calm()
	w.off = false
	for _, c := range w.pending[:w.rng.IntN(len(w.pending)+1)] {
		c.do(w.safe)
	}
	w.pending = nil
	for _, name := range slices.Sorted(maps.Keys(w.safe)) { // parents come first
		if f, ok := w.safe[path.Dir(name)]; !ok || f != nil {
			delete(w.safe, name)
		}
	}
	for _, f := range w.safe {
		if f != nil && f.synced < len(f.data) {
			f.data = f.data[:f.synced+w.rng.IntN(len(f.data)-f.synced+1)]
			f.synced = len(f.data)
		}
	}
	w.now = maps.Clone(w.safe)
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
	w.clock = w.clock.Add(time.Millisecond)
	return nil
}

// names changes names now, and for good when the folder is synced.
func (w *World) names(do func(names map[string]*inode), dir string) {
	do(w.now)
	w.pending = append(w.pending, change{dir: dir, do: do})
}

func (w *World) lookup(op, name string, folder bool) (*inode, error) {
	f, ok := w.now[name]
	switch {
	case w.off:
		return nil, ErrPowerCut
	case !ok || folder != (f == nil):
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	return f, nil
}

// Create implements store.Files.
func (w *World) Create(name string) (store.File, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.free("create", name); err != nil {
		return nil, err
	}
	f := &inode{time: w.clock}
	w.names(func(names map[string]*inode) { names[name] = f }, path.Dir(name))
	return &open{w: w, f: f}, nil
}

// free is a step that wants a folder in which the name is free. w.mu is held.
func (w *World) free(op, name string) error {
	if err := w.step(); err != nil {
		return err
	}
	if _, err := w.lookup(op, path.Dir(name), true); err != nil {
		return err
	}
	if _, taken := w.now[name]; taken {
		return &fs.PathError{Op: op, Path: name, Err: fs.ErrExist}
	}
	return nil
}

// Open implements store.Files.
func (w *World) Open(name string) (store.ReadFile, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f, err := w.lookup("open", name, false)
	if err != nil {
		return nil, err
	}
	return reading{strings.NewReader(string(f.data))}, nil
}

// Rename implements store.Files.
func (w *World) Rename(from, to string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	f, err := w.lookup("rename", from, false)
	if err == nil {
		err = w.free("rename", to)
	}
	if err == nil {
		w.names(func(names map[string]*inode) { delete(names, from); names[to] = f }, path.Dir(to))
	}
	return err
}

// Remove implements store.Files.
func (w *World) Remove(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.step()
	if err == nil {
		_, err = w.lookup("remove", name, false)
	}
	if err == nil {
		w.names(func(names map[string]*inode) { delete(names, name) }, path.Dir(name))
	}
	return err
}

// Mkdir implements store.Files.
func (w *World) Mkdir(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.free("mkdir", name)
	if err == nil {
		w.names(func(names map[string]*inode) { names[name] = nil }, path.Dir(name))
	}
	return err
}

// SyncDir implements store.Files.
func (w *World) SyncDir(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.step(); err != nil {
		return err
	}
	w.pending = slices.DeleteFunc(w.pending, func(c change) bool {
		if c.dir == name {
			c.do(w.safe)
		}
		return c.dir == name
	})
	return nil
}

// ReadDir implements store.Files.
func (w *World) ReadDir(name string) ([]fs.FileInfo, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := w.lookup("readdir", name, true); err != nil {
		return nil, err
	}
	var infos []fs.FileInfo
	for _, at := range slices.Sorted(maps.Keys(w.now)) {
		if at != "." && path.Dir(at) == name {
			infos = append(infos, info{path.Base(at), w.now[at]})
		}
	}
	return infos, nil
}

// Close implements store.Files.
func (w *World) Close() error { return nil }

// open is a file that is being written.
type open struct {
	w *World
	f *inode
}

// Write writes only half before it fails.
func (o *open) Write(p []byte) (int, error) {
	o.w.mu.Lock()
	defer o.w.mu.Unlock()
	n, err := len(p), o.w.step()
	if err != nil {
		n = len(p) / 2
	}
	o.f.data = append(o.f.data, p[:n]...)
	o.f.time = o.w.clock
	return n, err
}

func (o *open) Sync() error {
	o.w.mu.Lock()
	defer o.w.mu.Unlock()
	err := o.w.step()
	if err == nil {
		o.f.synced = len(o.f.data)
	}
	return err
}

func (o *open) Close() error { return nil }

type reading struct{ *strings.Reader }

func (reading) Close() error { return nil }

type info struct {
	name string
	f    *inode
}

func (i info) Name() string { return i.name }
func (i info) IsDir() bool  { return i.f == nil }
func (i info) Sys() any     { return nil }

func (i info) Size() int64 {
	if i.f == nil {
		return 0
	}
	return int64(len(i.f.data))
}

func (i info) Mode() fs.FileMode {
	if i.f == nil {
		return fs.ModeDir
	}
	return 0
}

func (i info) ModTime() time.Time {
	if i.f == nil {
		return time.Time{}
	}
	return i.f.time
}
