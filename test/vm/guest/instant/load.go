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
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/linux/reexec"
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

// Churner is the part of a test binary that Churn needs, for reexec.Main.
var Churner = reexec.Part{Name: "tidemark-test-churn", Run: churn}

// Churn writes to a filesystem in other ways than Load, until the returned function is called: through
// a mapping, with holes and zeros, by files that take the place of others, in a folder that comes
// and goes, and with discards of what is free, as far as the device takes them. It is a process of
// its own: one that waits for a frozen filesystem to write to a mapping cannot change its memory, and
// so take no snapshot.
func Churn(t *testing.T, at string) (stop func()) {
	t.Helper()
	var said strings.Builder
	cmd := reexec.Command(Churner, at)
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("churn: %v: %s", err, said.String())
		}
	})
	t.Cleanup(stop)
	return stop
}

// churn writes until its input ends.
func churn(args []string) int {
	const size = 1 << 20
	_ = os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin") // of constants
	guest.StepBack()
	at := args[0]
	f, err := os.OpenFile(filepath.Join(at, "mapped"), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		_, err = f.Write(make([]byte, size))
	}
	var mapped []byte
	if err == nil {
		mapped, err = unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	for err == nil {
		select {
		case <-done:
			return 0
		default:
		}
		err = errors.Join(rewrite(f, mapped), replace(at))
		_ = exec.Command("fstrim", at).Run() // a device with a snapshot takes none
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
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
