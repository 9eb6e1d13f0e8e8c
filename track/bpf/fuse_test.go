package bpf_test

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// image is the content of a disk that a FUSE server holds in memory. The test
// decides when a write takes effect and when it is answered.
type image struct {
	mu   sync.Mutex
	data []byte
	// onWrite is called for every write; it must call apply once.
	onWrite func(off int64, n int, apply func())
}

func (im *image) write(p []byte, off int64) {
	im.mu.Lock()
	defer im.mu.Unlock()
	copy(im.data[off:], p)
}

// snapshot returns a copy of the content of this moment.
func (im *image) snapshot() []byte {
	im.mu.Lock()
	defer im.mu.Unlock()
	return append([]byte(nil), im.data...)
}

func (im *image) at(off int64) byte {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.data[off]
}

// imageNode is the only file of the mount.
type imageNode struct {
	fs.Inode
	im *image
}

var (
	_ fs.NodeOpener    = (*imageNode)(nil)
	_ fs.NodeReader    = (*imageNode)(nil)
	_ fs.NodeWriter    = (*imageNode)(nil)
	_ fs.NodeFsyncer   = (*imageNode)(nil)
	_ fs.NodeGetattrer = (*imageNode)(nil)
	_ fs.NodeSetattrer = (*imageNode)(nil)
	_ fs.NodeAllocater = (*imageNode)(nil)
)

func (n *imageNode) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

func (n *imageNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o600, uint64(len(n.im.data))
	return 0
}

func (n *imageNode) Setattr(_ context.Context, _ fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o600, uint64(len(n.im.data))
	return 0
}

func (n *imageNode) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return 0 }

func (n *imageNode) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n.im.mu.Lock()
	defer n.im.mu.Unlock()
	return fuse.ReadResultData(append([]byte(nil), n.im.data[off:min(int(off)+len(dest), len(n.im.data))]...)), 0
}

func (n *imageNode) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	if n.im.onWrite == nil {
		n.im.write(data, off)
		return uint32(len(data)), 0
	}
	n.im.onWrite(off, len(data), func() { n.im.write(data, off) })
	return uint32(len(data)), 0
}

// Allocate punches holes and zeroes ranges: what a loop device makes of
// discards.
func (n *imageNode) Allocate(_ context.Context, _ fs.FileHandle, off, size uint64, _ uint32) syscall.Errno {
	apply := func() { n.im.write(make([]byte, size), int64(off)) }
	if n.im.onWrite == nil {
		apply()
		return 0
	}
	n.im.onWrite(int64(off), int(size), apply)
	return 0
}

// slowDisk returns a loop device with direct I/O over an image, so that a write
// to the device ends when the image's hook returns.
func slowDisk(t testing.TB, size int64, onWrite func(off int64, n int, apply func())) (dev string, im *image) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Fatal("needs FUSE in the kernel: ", err)
	}
	im = &image{data: make([]byte, size), onWrite: onWrite}
	dir := t.TempDir()
	root := &fs.Inode{}
	server, err := fs.Mount(dir, root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMount: true, MaxBackground: 128, ExtraCapabilities: fuse.CAP_ASYNC_DIO, FsName: "tidemark-test"},
		OnAdd: func(ctx context.Context) {
			root.AddChild("disk", root.NewPersistentInode(ctx, &imageNode{im: im}, fs.StableAttr{Mode: fuse.S_IFREG}), false)
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
	return loop(t, filepath.Join(dir, "disk")), im
}
