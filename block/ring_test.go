package block

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unsafe"
)

// What the kernel's header says, asked of a C compiler (package gcc).
func TestRingLayoutIsTheKernels(t *testing.T) {
	var s submission
	var c completion
	var p params
	ours := map[string]uintptr{
		"sizeof(struct io_uring_sqe)":                    unsafe.Sizeof(s),
		"offsetof(struct io_uring_sqe, opcode)":          unsafe.Offsetof(s.opcode),
		"offsetof(struct io_uring_sqe, flags)":           unsafe.Offsetof(s.flags),
		"offsetof(struct io_uring_sqe, ioprio)":          unsafe.Offsetof(s.ioprio),
		"offsetof(struct io_uring_sqe, fd)":              unsafe.Offsetof(s.fd),
		"offsetof(struct io_uring_sqe, off)":             unsafe.Offsetof(s.off),
		"offsetof(struct io_uring_sqe, addr)":            unsafe.Offsetof(s.addr),
		"offsetof(struct io_uring_sqe, len)":             unsafe.Offsetof(s.len),
		"offsetof(struct io_uring_sqe, rw_flags)":        unsafe.Offsetof(s.rwFlags),
		"offsetof(struct io_uring_sqe, user_data)":       unsafe.Offsetof(s.userData),
		"sizeof(struct io_uring_cqe)":                    unsafe.Sizeof(c),
		"offsetof(struct io_uring_cqe, user_data)":       unsafe.Offsetof(c.userData),
		"offsetof(struct io_uring_cqe, res)":             unsafe.Offsetof(c.res),
		"sizeof(struct io_uring_params)":                 unsafe.Sizeof(p),
		"offsetof(struct io_uring_params, sq_entries)":   unsafe.Offsetof(p.sqEntries),
		"offsetof(struct io_uring_params, cq_entries)":   unsafe.Offsetof(p.cqEntries),
		"offsetof(struct io_uring_params, features)":     unsafe.Offsetof(p.features),
		"offsetof(struct io_uring_params, sq_off)":       unsafe.Offsetof(p.sq),
		"offsetof(struct io_uring_params, sq_off.tail)":  unsafe.Offsetof(p.sq) + unsafe.Offsetof(p.sq.tail),
		"offsetof(struct io_uring_params, sq_off.array)": unsafe.Offsetof(p.sq) + unsafe.Offsetof(p.sq.array),
		"offsetof(struct io_uring_params, cq_off)":       unsafe.Offsetof(p.cq),
		"offsetof(struct io_uring_params, cq_off.head)":  unsafe.Offsetof(p.cq) + unsafe.Offsetof(p.cq.head),
		"offsetof(struct io_uring_params, cq_off.tail)":  unsafe.Offsetof(p.cq) + unsafe.Offsetof(p.cq.tail),
		"offsetof(struct io_uring_params, cq_off.cqes)":  unsafe.Offsetof(p.cq) + unsafe.Offsetof(p.cq.cqes),
		"IORING_OP_READ":          opRead,
		"IORING_ENTER_GETEVENTS":  enterGetEvents,
		"IORING_FEAT_SINGLE_MMAP": featSingleMmap,
		"IORING_OFF_SQ_RING":      offSubmissions,
		"IORING_OFF_SQES":         offSubmissionList,
	}
	var src strings.Builder
	src.WriteString("#include <stddef.h>\n#include <linux/types.h>\n#include <linux/time_types.h>\n#include <linux/io_uring.h>\n")
	for expr, n := range ours {
		fmt.Fprintf(&src, "_Static_assert(%s == %d, %q);\n", expr, n, expr)
	}
	file := filepath.Join(t.TempDir(), "layout.c")
	if err := os.WriteFile(file, []byte(src.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-fsyntax-only", file).CombinedOutput(); err != nil {
		t.Errorf("gcc (packages gcc, linux-libc-dev): %v\n%s", err, out)
	}
}

// scattered is a loop device of 16 MiB of random bytes and what it holds.
func scattered(t *testing.T) (*Device, []byte) {
	t.Helper()
	content := make([]byte, 16<<20)
	rand.NewChaCha8([32]byte{1}).Read(content)
	file := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup (package mount, needs root): %v: %s", err, out)
	}
	path := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if err := exec.Command("losetup", "--detach", path).Run(); err != nil {
			t.Errorf("losetup --detach %s: %v", path, err)
		}
	})
	d, err := Open(path, Options{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, content
}

// scatter returns n reads of one to four blocks in random places.
func scatter(rng *rand.Rand, n int, size int64) []Read {
	reads := make([]Read, n)
	for i := range reads {
		n := (1 + rng.Int64N(4)) * 4096
		reads[i] = Read{Buf: AlignedBuffer(int(n)), Off: rng.Int64N((size-n)/4096) * 4096}
	}
	return reads
}

func checkReads(t *testing.T, reads []Read, content []byte) {
	t.Helper()
	for i, r := range reads {
		if !bytes.Equal(r.Buf, content[r.Off:][:len(r.Buf)]) {
			t.Fatalf("read %d, of %d bytes at %d, brought something else", i, len(r.Buf), r.Off)
		}
	}
}

func TestReadManyReadsWhatIsThere(t *testing.T) {
	for _, how := range []string{"ring", "no ring"} {
		t.Run(how, func(t *testing.T) {
			d, content := scattered(t)
			d.noRing = how == "no ring"
			var wg sync.WaitGroup
			for g := range 4 {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(g), 7))
					for range 50 {
						reads := scatter(rng, rng.IntN(3*ringDepth), d.Size())
						if err := d.ReadMany(reads); err != nil {
							t.Error(err)
							return
						}
						checkReads(t, reads, content)
					}
				})
			}
			wg.Wait()
			if rings := len(d.rings); (rings == 0) != d.noRing {
				t.Errorf("%d rings were used", rings)
			}
		})
	}
}

func TestReadManyBeyondTheEndIsAnErrorAndTheRingGoesOn(t *testing.T) {
	d, content := scattered(t)
	rng := rand.New(rand.NewPCG(3, 4))
	reads := scatter(rng, 20, d.Size())
	reads[11].Off = d.Size()
	if err := d.ReadMany(reads); !errors.Is(err, io.EOF) {
		t.Fatalf("a read behind the end gives %v, want EOF", err)
	}
	reads[11].Off = d.Size() - 4096
	reads[11].Buf = AlignedBuffer(8192)
	if err := d.ReadMany(reads); !errors.Is(err, io.EOF) {
		t.Fatalf("a read over the end gives %v, want EOF", err)
	}
	reads = scatter(rng, 100, d.Size())
	if err := d.ReadMany(reads); err != nil {
		t.Fatal(err)
	}
	checkReads(t, reads, content)
}

func TestClosedDeviceReadsNoMore(t *testing.T) {
	d, _ := scattered(t)
	reads := scatter(rand.New(rand.NewPCG(5, 6)), 10, d.Size())
	if err := d.ReadMany(reads); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadMany(reads); !errors.Is(err, os.ErrClosed) {
		t.Errorf("reading a closed device gives %v", err)
	}
}
