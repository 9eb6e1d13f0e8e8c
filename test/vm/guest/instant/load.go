//go:build linux

package instant

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/test/vm/guest"
)

// Load keeps a filesystem busy until the returned function is called. The guest must have fio.
func Load(t *testing.T, at string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, "fio", "--name=load", "--thread", "--nice="+strconv.Itoa(guest.Niceness), "--directory="+at, "--rw=randrw", "--bsrange=4k-128k",
		"--size=5m", "--numjobs=2", "--iodepth=8", "--ioengine=libaio", "--direct=1", "--fsync=16", "--time_based", "--runtime=3600", "--output=/dev/null")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	up := true
	stop = func() {
		if up {
			up = false
			cancel()
			_ = cmd.Wait() // killed
		}
	}
	t.Cleanup(stop)
	return stop
}

// Count writes a number that grows to the file "count" in each of several folders, one after the
// other, until the returned function is called: at any instant no folder is more than one behind
// another. The first number is there when it returns.
func Count(t *testing.T, folders ...string) (stop func()) {
	t.Helper()
	var files []*os.File
	for _, at := range folders {
		f, err := os.OpenFile(filepath.Join(at, "count"), os.O_CREATE|os.O_WRONLY|unix.O_DSYNC, 0o600)
		if err == nil {
			_, err = fmt.Fprintf(io.NewOffsetWriter(f, 0), "%010d", 1)
		}
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	done := make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		for n := 2; ; n++ {
			for _, f := range files {
				select {
				case <-done:
					return
				default:
				}
				if _, err := f.WriteAt(fmt.Appendf(nil, "%010d", n), 0); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	return sync.OnceFunc(func() {
		close(done)
		ended.Wait()
		for _, f := range files {
			f.Close()
		}
	})
}

// Churn writes to a filesystem in other ways than Load, until the returned function is called: through
// a mapping, with holes and zeros, by files that take the place of others, in a folder that comes
// and goes, and with discards of what is free, as far as the device takes them.
func Churn(t *testing.T, at string) (stop func()) {
	t.Helper()
	const size = 1 << 20
	f, err := os.OpenFile(filepath.Join(at, "mapped"), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		_, err = f.Write(make([]byte, size))
	}
	if err != nil {
		t.Fatal(err)
	}
	mapped, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		guest.StepBack()
		for {
			select {
			case <-done:
				return
			default:
			}
			if err := errors.Join(rewrite(f, mapped), replace(at)); err != nil {
				t.Error(err)
				return
			}
			_ = exec.Command("fstrim", at).Run() // a device with a snapshot takes none
		}
	})
	stop = sync.OnceFunc(func() {
		close(done)
		ended.Wait()
		if err := errors.Join(unix.Munmap(mapped), f.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// rewrite writes to a file and its mapping.
func rewrite(f *os.File, mapped []byte) error {
	const page = 4096
	for range 16 {
		at := rand.IntN(len(mapped)/page) * page
		guest.Scramble(mapped[at : at+page])
	}
	hole, zeros := rand.Int64N(int64(len(mapped))-8*page), rand.Int64N(int64(len(mapped))-8*page)
	return errors.Join(unix.Msync(mapped, unix.MS_SYNC),
		unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, hole, 8*page),
		unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, zeros, 4*page), f.Sync())
}

// replace has a file take the place of another.
func replace(at string) error {
	dir := filepath.Join(at, "folder")
	content := make([]byte, 16<<10)
	guest.Scramble(content)
	return errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(dir+"/new", content, 0o600),
		os.Rename(dir+"/new", at+"/replaced"), os.Remove(dir))
}
