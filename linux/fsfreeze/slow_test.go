package fsfreeze_test

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"tidemark/linux/fsfreeze"
	"tidemark/linux/mounts/mountstest"
)

// A gate lets calls through, or holds them up until it is opened.
type gate struct {
	mu      sync.Mutex
	open    chan struct{}
	waiting chan struct{} // closed when the first call is held up
	held    bool
}

func newGate() *gate {
	g := &gate{open: make(chan struct{}), waiting: make(chan struct{})}
	close(g.open)
	return g
}

func (g *gate) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open, g.waiting, g.held = make(chan struct{}), make(chan struct{}), false
}

func (g *gate) Open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
	default:
		close(g.open)
	}
}

// Waiting is closed when somebody has come to the closed gate.
func (g *gate) Waiting() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting
}

func (g *gate) pass() {
	g.mu.Lock()
	open := g.open
	select {
	case <-open:
	default:
		if !g.held {
			g.held = true
			close(g.waiting)
		}
	}
	g.mu.Unlock()
	<-open
}

// slowFile is the one file of a FUSE filesystem: a disk whose writes and flushes
// wait at a gate.
type slowFile struct {
	fs.Inode
	file *os.File
	gate *gate
}

var (
	_ fs.NodeOpener    = (*slowFile)(nil)
	_ fs.NodeReader    = (*slowFile)(nil)
	_ fs.NodeWriter    = (*slowFile)(nil)
	_ fs.NodeFsyncer   = (*slowFile)(nil)
	_ fs.NodeGetattrer = (*slowFile)(nil)
)

func (f *slowFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *slowFile) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := f.file.ReadAt(dest, off)
	if n == 0 && err != nil {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (f *slowFile) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	f.gate.pass()
	n, err := f.file.WriteAt(data, off)
	if err != nil {
		return uint32(n), syscall.EIO
	}
	return uint32(n), 0
}

func (f *slowFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	f.gate.pass()
	return 0
}

func (f *slowFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	info, err := f.file.Stat()
	if err != nil {
		return syscall.EIO
	}
	out.Mode, out.Size = fuse.S_IFREG|0o600, uint64(info.Size())
	return 0
}

type slowRoot struct {
	fs.Inode
	disk *slowFile
}

func (r *slowRoot) OnAdd(ctx context.Context) {
	r.AddChild("disk", r.NewPersistentInode(ctx, r.disk, fs.StableAttr{Mode: fuse.S_IFREG}), false)
}

// slowDisk returns the folder of an ext4 whose disk waits at the gate, which is
// open.
func slowDisk(t *testing.T) (dir string, g *gate) {
	t.Helper()
	backing, err := os.OpenFile(mountstest.Image(t, 64<<20), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { backing.Close() })
	g = newGate()
	point := t.TempDir()
	server, err := fs.Mount(point, &slowRoot{disk: &slowFile{file: backing, gate: g}},
		&fs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "slow"}})
	if err != nil {
		t.Fatalf("FUSE: %v", err)
	}
	t.Cleanup(func() {
		mountstest.Eventually(t, "unmounting FUSE", func() bool { return server.Unmount() == nil })
		server.Wait()
	})
	dev := mountstest.Attach(t, point+"/disk")
	mountstest.Mkfs(t, "ext4", dev)
	dir = mountstest.Mount(t, dev)
	mountstest.ThawAtEnd(t, dir)
	t.Cleanup(g.Open)
	return dir, g
}

// dirty leaves something in memory that a freeze must write out, and closes the
// gate before it.
func dirty(t *testing.T, dir string, g *gate) {
	t.Helper()
	syncfs(t, dir) // earlier writes must not be what waits at the gate
	g.Close()
	if err := os.WriteFile(dir+"/dirty", make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
}

func syncfs(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Syncfs(int(f.Fd())), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func wantWaiting(t *testing.T, g *gate) {
	t.Helper()
	select {
	case <-g.Waiting():
	case <-time.After(thawedBy):
		t.Fatal("the freeze wrote nothing")
	}
}

func TestCancelledFreezeReturnsAtOnceAndThawsLater(t *testing.T) {
	dir, gate := slowDisk(t)
	quick := disk(t, "ext4")
	g := arm(t, quick, dir)
	dirty(t, dir, gate)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	result := make(chan error, 1)
	go func() {
		_, err := g.Freeze(ctx, 0)
		result <- err
	}()
	wantWaiting(t, gate)
	cancel()
	select {
	case err := <-result:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("freeze: %v", err)
		}
	case <-time.After(thawedBy):
		t.Fatal("freeze did not return")
	}
	wantThawed(t, quick) // while the other one is still being frozen
	gate.Open()
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	wantThawed(t, dir)
}

func TestTimeRunsOutWhileFreezing(t *testing.T) {
	dir, gate := slowDisk(t)
	quick := disk(t, "ext4")
	g := arm(t, quick, dir)
	dirty(t, dir, gate)
	_, err := g.Freeze(t.Context(), 300*time.Millisecond)
	wantBroken(t, err, "300ms")
	wantThawed(t, quick)
	gate.Open()
	wantBroken(t, g.Thaw(), "time was up")
	wantThawed(t, dir)
}

func TestFreezerKilledWhileFreezingDiesAtOnceAndIsThawedLater(t *testing.T) {
	dir, gate := slowDisk(t)
	f := startFreezer(t, "0s", "wait", dir)
	if !f.reach("synced") {
		t.Fatal("it did not come so far")
	}
	dirty(t, dir, gate)
	if _, err := f.stdin.Write([]byte{'\n'}); err != nil {
		t.Fatal(err)
	}
	wantWaiting(t, gate)
	f.cmd.Process.Kill()
	ended := make(chan bool, 1)
	go func() { ended <- !f.reach("frozen") }()
	select {
	case ok := <-ended: // its output ended: the watchdog does not hold on to it
		if !ok {
			t.Error("it froze although the gate is closed")
		}
	case <-time.After(thawedBy):
		t.Fatal("its output is still open")
	}
	f.kill()
	gate.Open()
	wantThawed(t, dir)
	mountstest.Eventually(t, "the watchdog leaves", func() bool { return gone(f.watchdog) || zombie(f.watchdog) })
}

func TestWatchdogKilledWhileFreezingIsReplaced(t *testing.T) {
	dir, gate := slowDisk(t)
	g := arm(t, dir)
	dirty(t, dir, gate)
	result := make(chan error, 1)
	go func() {
		_, err := g.Freeze(t.Context(), 0)
		result <- err
	}()
	wantWaiting(t, gate)
	if err := unix.Kill(g.Watchdog(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gate.Open() // the call cannot be interrupted: it must come through first
	if err := <-result; err == nil {
		t.Error("the freeze succeeded without a watchdog")
	}
	g.Close()
	wantThawed(t, dir)
}

// A filesystem in a file on the one that is slow to freeze cannot be thawed before
// that one is: its thaw writes. Whoever waits for the one must not be needed for
// the other.
func TestNestedFilesystemsThawWhenTheTimeRunsOutWhileFreezing(t *testing.T) {
	outer, gate := slowDisk(t)
	dev := mountstest.Attach(t, mountstest.ImageIn(t, outer, 32<<20))
	mountstest.Mkfs(t, "ext4", dev)
	nested := mountstest.Mount(t, dev)
	mountstest.ThawAtEnd(t, nested)
	t.Cleanup(gate.Open)
	g := arm(t, nested, outer)
	if err := g.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Only the outer one has something to write: the nested one is frozen by then.
	if err := os.WriteFile(outer+"/dirty", make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	gate.Close()
	go func() {
		_, err := g.Freeze(t.Context(), 500*time.Millisecond)
		result <- err
	}()
	wantWaiting(t, gate)
	err := <-result
	gate.Open()
	if !errors.Is(err, fsfreeze.ErrBroken) {
		t.Errorf("freeze: %v, want the time to be up", err)
	}
	g.Close()
	wantThawed(t, nested, outer)
}
