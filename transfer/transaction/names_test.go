package transaction_test

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"tidemark/transfer/transaction"
)

// synced is a filesystem that notes which of its folders are synced.
type synced struct {
	fs.LoopbackNode
	log *syncLog
}

type syncLog struct {
	mu      sync.Mutex
	folders []string
}

func (n *synced) WrapChild(context.Context, fs.InodeEmbedder) fs.InodeEmbedder {
	return &synced{LoopbackNode: fs.LoopbackNode{RootData: n.RootData}, log: n.log}
}

func (n *synced) OpendirHandle(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return openFolder{n}, 0, 0
}

// openFolder is a folder that is opened to be synced.
type openFolder struct{ n *synced }

func (f openFolder) Fsyncdir(context.Context, uint32) syscall.Errno {
	f.n.log.mu.Lock()
	defer f.n.log.mu.Unlock()
	f.n.log.folders = append(f.n.log.folders, "/"+f.n.Path(f.n.Root()))
	return 0
}

// The names of a folder that was made, of those that were made for it, and of an image
// survive a power cut: the folders that they stand in are synced.
func TestNamesAreMadeDurable(t *testing.T) {
	log := &syncLog{}
	root := &fs.LoopbackRoot{Path: t.TempDir()}
	root.RootNode = &synced{LoopbackNode: fs.LoopbackNode{RootData: root}, log: log}
	at := t.TempDir()
	server, err := fs.Mount(at, root.RootNode, &fs.Options{MountOptions: fuse.MountOptions{DirectMount: true}})
	if err != nil {
		t.Fatalf("FUSE: %v", err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	})
	dir, err := transaction.OpenDir(filepath.Join(at, "a", "b", "c"), true)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := transaction.CreateImage(filepath.Join(at, "a", "image"), 0o600); err != nil {
		t.Fatal(err)
	}
	log.mu.Lock()
	defer log.mu.Unlock()
	for _, folder := range []string{"/", "/a", "/a/b"} {
		if !slices.Contains(log.folders, folder) {
			t.Errorf("%s was not synced, only %q", folder, log.folders)
		}
	}
	if n := len(log.folders); n == 0 || log.folders[n-1] != "/a" {
		t.Errorf("the folder of the image was not synced: %q", log.folders)
	}
}
