package mounts

import (
	"bytes"
	"fmt"
	"os"
	"runtime"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

// uncover opens a filesystem whose mountpoint is covered by another mount. It
// takes the covering mounts away in a mount namespace of its own, which nobody
// else sees and which goes with the thread that made it.
func (f Filesystem) uncover(m Mount) (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result, 1)
	onThrowawayThread(func() {
		file, err := f.uncoverHere(m)
		done <- result{file, err}
	})
	r := <-done
	return r.file, r.err
}

// onThrowawayThread runs work on a thread that ends with it. The process's first
// thread would live on, and keep the namespace: it is stepped around.
func onThrowawayThread(work func()) {
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		runtime.LockOSThread() // never unlocked: the thread ends here
		if unix.Gettid() != unix.Getpid() {
			work()
			return
		}
		defer runtime.UnlockOSThread()
		onThrowawayThread(work)
	}()
	<-finished
}

// coverLimit bounds how many mounts are taken away; nobody stacks as many.
const coverLimit = 64

func (f Filesystem) uncoverHere(m Mount) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, os.NewSyscallError("mount", err)
	}
	keep, target, err := f.chain(m)
	if err != nil {
		return nil, err
	}
	for _, p := range pathPrefixes(m.Point) {
		if err := peel(p, keep); err != nil {
			return nil, err
		}
	}
	return f.openAt(m.Point, func(id int) bool { return id == target })
}

// chain returns the ids, in this thread's namespace, of the copy of mount m and
// of the mounts above it. A namespace's copy has the mounts in the same order but
// with ids of its own, so m is told by its place and its filesystem.
func (f Filesystem) chain(m Mount) (keep map[int]bool, target int, err error) {
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, 0, err
	}
	infos, err := mountinfo.GetMountsFromReader(bytes.NewReader(b), nil)
	if err != nil {
		return nil, 0, err
	}
	byID := map[int]*mountinfo.Info{}
	var found *mountinfo.Info
	for _, i := range infos {
		byID[i.ID] = i
		if i.Mountpoint == m.Point && (sysfs.Dev{Major: uint32(i.Major), Minor: uint32(i.Minor)}) == f.Dev {
			found = i
		}
	}
	if found == nil {
		return nil, 0, fmt.Errorf("%s: %w", m.Point, unix.ESTALE)
	}
	keep = map[int]bool{}
	for i := found; i != nil && !keep[i.ID]; i = byID[i.Parent] {
		keep[i.ID] = true
	}
	return keep, found.ID, nil
}

// peel detaches what covers path until a mount to keep shows.
func peel(path string, keep map[int]bool) error {
	for range coverLimit {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: path, Err: err}
		}
		id, err := mountID(fd)
		unix.Close(fd)
		if err != nil {
			return err
		}
		if keep[id] {
			return nil
		}
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return &os.PathError{Op: "umount", Path: path, Err: err}
		}
	}
	return fmt.Errorf("%s: covered more than %d times", path, coverLimit)
}
