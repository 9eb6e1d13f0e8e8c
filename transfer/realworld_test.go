package transfer_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/internal/faultdisk"
	"tidemark/transfer/transaction"
)

// realWorld is a folder and an image on a filesystem. A cut makes every later
// operation fail, as if the process had been killed.
type realWorld struct {
	t     *testing.T
	image string
	dir   *transaction.Dir
	disk  transaction.Disk

	mu            sync.Mutex
	ops           int
	cutAt, failAt int
	off           bool
}

func newRealWorld(t *testing.T) *realWorld {
	t.Helper()
	base := t.TempDir()
	w := &realWorld{t: t, image: filepath.Join(base, "disk.img"), cutAt: -1, failAt: -1}
	if err := os.WriteFile(w.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.open()
	t.Cleanup(w.close)
	return w
}

func (w *realWorld) open() {
	var err error
	if w.dir, err = transaction.OpenDir(w.image+".tidemark", true); err != nil {
		w.t.Fatal(err)
	}
	if w.disk.Device, err = block.Open(w.image, block.Options{Write: true}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *realWorld) close() {
	w.dir.Close()
	w.disk.Close()
}

func (w *realWorld) plan(cutAt, failAt int) { w.ops, w.cutAt, w.failAt = 0, cutAt, failAt }
func (w *realWorld) CutAfter(n int)         { w.plan(n, -1) }
func (w *realWorld) FailAfter(n int)        { w.plan(-1, n) }
func (w *realWorld) Calm()                  { w.plan(-1, -1) }
func (w *realWorld) IsOff() bool            { return w.off }

func (w *realWorld) Restart() {
	w.Calm()
	w.off = false
	w.close()
	w.open()
}

func (w *realWorld) Content() []byte {
	b, err := os.ReadFile(w.image)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *realWorld) Scribble(off int, p []byte) {
	if _, err := w.disk.WriteAt(p, int64(off)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *realWorld) Stretch(size int) {
	if err := w.disk.Truncate(int64(size)); err != nil {
		w.t.Fatal(err)
	}
}

// step counts one change and decides its fate.
func (w *realWorld) step() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.ops
	w.ops++
	switch {
	case w.off || n == w.cutAt:
		w.off = true
		return faultdisk.ErrPowerCut
	case n == w.failAt:
		return faultdisk.ErrInjected
	}
	return nil
}

func (w *realWorld) alive() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.off {
		return faultdisk.ErrPowerCut
	}
	return nil
}

func (w *realWorld) Folder() transaction.Folder { return realFolder{w} }
func (w *realWorld) Target() transaction.Target { return realTarget{w} }

// after does f unless the change that it is fails.
func (w *realWorld) after(f func() error) error {
	if err := w.step(); err != nil {
		return err
	}
	return f()
}

type realFolder struct{ w *realWorld }

func (d realFolder) Open(name string, create bool) (transaction.File, error) {
	check := d.w.alive
	if create {
		check = d.w.step
	}
	if err := check(); err != nil {
		return nil, err
	}
	f, err := d.w.dir.Open(name, create)
	if err != nil {
		return nil, err
	}
	return realFile{File: f, w: d.w}, nil
}

func (d realFolder) Rename(from, to string) error {
	return d.w.after(func() error { return d.w.dir.Rename(from, to) })
}

func (d realFolder) Remove(name string) error {
	return d.w.after(func() error { return d.w.dir.Remove(name) })
}

func (d realFolder) Sync() error { return d.w.after(d.w.dir.Sync) }

func (d realFolder) Now(transaction.Target) (int64, bool) { return d.w.dir.Now(d.w.disk) }

type realFile struct {
	transaction.File
	w *realWorld
}

func (f realFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.w.step(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f realFile) Sync() error { return f.w.after(f.File.Sync) }

type realTarget struct{ w *realWorld }

func (t realTarget) ReadAt(p []byte, off int64) (int, error) {
	if err := t.w.alive(); err != nil {
		return 0, err
	}
	return t.w.disk.ReadAt(p, off)
}

func (t realTarget) WriteAt(p []byte, off int64) (int, error) {
	if err := t.w.step(); err != nil {
		return 0, err
	}
	return t.w.disk.WriteAt(p, off)
}

func (t realTarget) Zero(e extent.Extent) error {
	return t.w.after(func() error { return t.w.disk.Zero(e) })
}

func (t realTarget) Reserve(e extent.Extent) error {
	return t.w.after(func() error { return t.w.disk.Reserve(e) })
}

func (t realTarget) Resize(size int64) error {
	return t.w.after(func() error { return t.w.disk.Resize(size) })
}

func (t realTarget) Sync() error { return t.w.after(t.w.disk.Sync) }

func (t realTarget) Stamp() (transaction.Stamp, error) {
	if err := t.w.alive(); err != nil {
		return transaction.Stamp{}, err
	}
	return t.w.disk.Stamp()
}
