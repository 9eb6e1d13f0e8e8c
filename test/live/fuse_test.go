package live_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// faultyImage is a file whose server decides which reads fail, and which wait.
type faultyImage struct {
	fs.Inode
	file  *os.File
	size  int64
	mount string

	mu     sync.Mutex
	bad    int64         // offset of a block that cannot be read; -1 is none
	gate   chan struct{} // what reads wait for; nil is nothing
	waited chan struct{} // gets a value when a read begins to wait
}

var (
	_ fs.NodeOpener    = (*faultyImage)(nil)
	_ fs.NodeReader    = (*faultyImage)(nil)
	_ fs.NodeWriter    = (*faultyImage)(nil)
	_ fs.NodeFsyncer   = (*faultyImage)(nil)
	_ fs.NodeGetattrer = (*faultyImage)(nil)
	_ fs.NodeSetattrer = (*faultyImage)(nil)
	_ fs.NodeAllocater = (*faultyImage)(nil)
)

func (n *faultyImage) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

func (n *faultyImage) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o600, uint64(n.size)
	return 0
}

func (n *faultyImage) Setattr(_ context.Context, _ fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o600, uint64(n.size)
	return 0
}

func (n *faultyImage) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return 0 }

func (n *faultyImage) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n.mu.Lock()
	bad, gate := n.bad, n.gate
	n.mu.Unlock()
	if gate != nil {
		select {
		case n.waited <- struct{}{}:
		default:
		}
		<-gate
	}
	if bad >= 0 && off < bad+4096 && bad < off+int64(len(dest)) {
		return nil, syscall.EIO
	}
	got, _ := n.file.ReadAt(dest, off) // short behind the end
	return fuse.ReadResultData(dest[:got]), 0
}

func (n *faultyImage) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	done, err := n.file.WriteAt(data, off)
	return uint32(done), fs.ToErrno(err)
}

// Allocate punches holes and zeroes ranges: what a loop device makes of discards.
func (n *faultyImage) Allocate(_ context.Context, _ fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	return fs.ToErrno(syscall.Fallocate(int(n.file.Fd()), mode, int64(off), int64(size)))
}

// breakBlock makes the block at off unreadable; -1 heals all.
func (n *faultyImage) breakBlock(off int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.bad = off
}

// hang makes reads wait until the function it returns is called, which the end
// of the test does at the latest.
func (n *faultyImage) hang(t testing.TB) (release func()) {
	gate := make(chan struct{})
	n.mu.Lock()
	n.gate = gate
	n.mu.Unlock()
	release = sync.OnceFunc(func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.gate = nil
		close(gate)
	})
	t.Cleanup(release)
	return release
}

// abort makes the kernel give up on the server, as when that dies: what was asked
// and all that will be fails.
func (n *faultyImage) abort(t testing.TB) {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(n.mount, &st); err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", st.Dev)
	if !exists(path) {
		must(t, "mount", "-t", "fusectl", "fusectl", "/sys/fs/fuse/connections")
		t.Cleanup(func() { must(t, "umount", "/sys/fs/fuse/connections") })
	}
	if err := os.WriteFile(path, []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
}

// faulty returns a loop device with direct I/O over a faulty image.
func faulty(t testing.TB, dir string, size int64) (string, *faultyImage) {
	t.Helper()
	if !exists("/dev/fuse") {
		t.Fatal("needs FUSE in the kernel")
	}
	f, err := os.Create(filepath.Join(dir, "behind.img"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	im := &faultyImage{file: f, size: size, bad: -1, waited: make(chan struct{}, 1)}
	at := folder(t, dir, "fuse")
	im.mount = at
	root := &fs.Inode{}
	server, err := fs.Mount(at, root, &fs.Options{
		MountOptions: fuse.MountOptions{
			DirectMount: true, MaxBackground: 128, ExtraCapabilities: fuse.CAP_ASYNC_DIO, FsName: "tidemark-test",
			Logger: log.New(io.Discard, "", 0), // it tells of every answer that nobody waits for
		},
		OnAdd: func(ctx context.Context) {
			root.AddChild("disk", root.NewPersistentInode(ctx, im, fs.StableAttr{Mode: fuse.S_IFREG}), false)
		},
	})
	if err != nil {
		t.Fatal("mount FUSE:", err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error("unmount FUSE:", err)
		}
	})
	dev := must(t, "losetup", "--find", "--show", "--direct-io=on", filepath.Join(at, "disk"))
	t.Cleanup(func() { must(t, "losetup", "--detach", dev) })
	return dev, im
}
