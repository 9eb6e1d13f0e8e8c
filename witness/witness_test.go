package witness_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/extent"
	"tidemark/linux/mounts/mountstest"
	"tidemark/witness"
)

// disk is an image, and what was done to it.
type disk struct {
	t    *testing.T
	path string
	dev  string
}

func newDisk(t *testing.T, size int64) *disk {
	d := &disk{t: t, path: mountstest.Image(t, size)}
	d.dev = mountstest.Attach(t, d.path)
	return d
}

func (d *disk) read() witness.Witness {
	d.t.Helper()
	mountstest.Run(d.t, "blockdev", "--flushbufs", d.dev)
	f, err := os.Open(d.path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		d.t.Fatal(err)
	}
	w, err := witness.Read(f, st.Size())
	if err != nil {
		d.t.Fatal(err)
	}
	return w
}

// mounted calls what with the filesystem mounted.
func (d *disk) mounted(what func(dir string), options ...string) {
	d.t.Helper()
	dir := mountstest.Mount(d.t, d.dev, options...)
	what(dir)
	mountstest.Run(d.t, "umount", dir)
}

func write(t *testing.T, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("written"), 0o600); err != nil {
		t.Fatal(err)
	}
	mountstest.Run(t, "sync", "--file-system", dir)
}

// A repair of XFS writes all indexes of free space anew, and leaves the log and the superblock as they were.
// The first group is as it was where nobody has written to it since the repair before.
func TestARepairShowsWhereOnlyOtherGroupsHadChanged(t *testing.T) {
	d := newDisk(t, 320<<20)
	d.tool([]string{"mkfs.xfs", "-q", "-f", "-d", "agcount=4"})
	d.mounted(func(dir string) {
		for i := range 8 { // each in another group than the one before
			if err := os.Mkdir(filepath.Join(dir, fmt.Sprint(i)), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	})
	d.tool([]string{"xfs_repair"})
	d.mounted(func(dir string) {
		for i := range 8 {
			name := filepath.Join(dir, fmt.Sprint(i))
			var st unix.Stat_t
			if err := unix.Stat(name, &st); err != nil {
				t.Fatal(err)
			}
			if st.Ino >= 1<<16 { // not of the first group
				write(t, name)
			}
		}
	})
	was := d.read()
	before, err := os.ReadFile(d.path)
	if err != nil {
		t.Fatal(err)
	}
	d.tool([]string{"xfs_repair"})
	now := d.read()
	after, err := os.ReadFile(d.path)
	if err != nil || bytes.Equal(before, after) {
		t.Fatalf("the repair wrote nothing: %v", err)
	}
	if diff := witness.Compare(was, now); len(diff) == 0 {
		t.Errorf("the repair does not show: %s", now)
	} else {
		t.Log(diff)
	}
}

// kinds are filesystems that keep a trace, each with the arguments that make it.
var kinds = map[string]struct {
	kind   string
	size   int64
	mkfs   []string
	repair [][]string // each of which changes the disk
	idle   bool       // a mount that writes nothing writes nothing at all
}{
	"ext4": {"ext4", 64 << 20, []string{"mkfs.ext4", "-q", "-F"}, [][]string{
		{"e2fsck", "-f", "-p"}, {"tune2fs", "-c", "7"}, {"tune2fs", "-L", "x"}, {"resize2fs", "-f", "@", "40M"},
	}, false},
	"ext4 of 1k blocks": {"ext4", 40 << 20, []string{"mkfs.ext4", "-q", "-F", "-b", "1024"}, [][]string{{"e2fsck", "-f", "-p"}}, false},
	"ext3":              {"ext4", 40 << 20, []string{"mkfs.ext3", "-q", "-F"}, [][]string{{"e2fsck", "-f", "-p"}}, false},
	"ext2":              {"ext4", 40 << 20, []string{"mkfs.ext2", "-q", "-F"}, [][]string{{"e2fsck", "-f", "-p"}}, false},
	"xfs":               {"xfs", 320 << 20, []string{"mkfs.xfs", "-q", "-f"}, [][]string{{"xfs_repair"}, {"xfs_repair", "-L"}, {"xfs_admin", "-L", "x"}}, false},
	"btrfs":             {"btrfs", 128 << 20, []string{"mkfs.btrfs", "-q", "-f"}, [][]string{{"btrfs", "filesystem", "label", "@", "x"}}, true},
}

func (d *disk) tool(args []string) {
	d.t.Helper()
	args = slices.Clone(args)
	if i := slices.Index(args, "@"); i >= 0 {
		args[i] = d.dev
	} else {
		args = append(args, d.dev)
	}
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		d.t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

func TestEveryMountThatMayWriteAndEveryRepairShows(t *testing.T) {
	for name, k := range kinds {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t, k.size)
			d.tool(k.mkfs)
			was := d.read()
			if len(was.Volumes) != 1 || was.Volumes[0].Kind != k.kind || was.Volumes[0].State != witness.Clean {
				t.Fatalf("a new one: %s", was)
			}
			changed := func(what string) {
				t.Helper()
				now := d.read()
				if diff := witness.Compare(was, now); len(diff) == 0 {
					t.Errorf("%s does not show: %s", what, now)
				} else {
					t.Logf("%s: %s", what, strings.Join(diff, "; "))
				}
				if again := witness.Compare(now, d.read()); len(again) > 0 {
					t.Errorf("%s: nothing happened, and %v", what, again)
				}
				was = now
			}
			for range 3 {
				d.mounted(func(dir string) {
					if k.idle {
						write(t, dir)
					}
				})
				changed("a mount")
			}
			d.mounted(func(dir string) { write(t, dir) })
			changed("a mount with a write")
			for _, args := range k.repair {
				d.tool(args)
				changed(strings.Join(args, " "))
			}
			if state := was.Volumes[0].State; state != witness.Clean {
				t.Errorf("it is unmounted, and %q: %s", state, was)
			}
		})
	}
}

// A power cut is a copy of the disk while it is mounted.
func TestWhatWasNotUnmountedIsToBeRecovered(t *testing.T) {
	for name, k := range kinds {
		if k.kind == "btrfs" { // which is whole at any time
			continue
		}
		t.Run(name, func(t *testing.T) {
			d := newDisk(t, k.size)
			d.tool(k.mkfs)
			d.mounted(func(dir string) {
				for range 3 {
					write(t, dir)
					if w := d.read(); len(w.Unclean()) != 1 {
						t.Errorf("mounted: %s", w)
					}
				}
				mountstest.Run(t, "mount", "-o", "remount,ro", dir)
				if w := d.read(); len(w.Unclean()) != 0 {
					t.Errorf("mounted read-only: %s", w)
				}
			})
			if w := d.read(); len(w.Unclean()) != 0 {
				t.Errorf("unmounted: %s", w)
			}
		})
	}
}

// The log of XFS is a ring; it is unmounted at many places of it, and around its end.
func TestTheHeadOfTheLogIsFoundWhereverItIs(t *testing.T) {
	for _, name := range []string{"TEST_DIR", "TEST_DEV", "QA_CHECK_FS"} { // else it makes none as small
		t.Setenv(name, "1")
	}
	d := newDisk(t, 64<<20)
	d.tool([]string{"mkfs.xfs", "-q", "-f"})
	was := d.read()
	heads, first := map[string]bool{}, was.Volumes[0].Fields[2].Value
	for n := 0; was.Volumes[0].Fields[2].Value == first; n++ {
		d.mounted(func(dir string) {
			for i := range 50 + 100*(n%8) { // inodes in the log
				name := filepath.Join(dir, strings.Repeat("x", 1+i%200))
				if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Remove(name)); err != nil {
					t.Fatal(err)
				}
				if i%20 == 0 {
					mountstest.Run(t, "sync", "--file-system", dir)
				}
			}
			if w := d.read(); len(w.Unclean()) != 1 {
				t.Fatalf("mounted: %s", w)
			}
		})
		now := d.read()
		if len(now.Unclean()) != 0 || len(witness.Compare(was, now)) == 0 {
			t.Fatalf("%s, was %s", now, was)
		}
		was = now
		heads[now.Volumes[0].Fields[1].Value] = true
	}
	t.Logf("%d heads: %s", len(heads), was)
}

func TestTheMountsOfExt4AreCounted(t *testing.T) {
	d := newDisk(t, 40<<20)
	d.tool([]string{"mkfs.ext4", "-q", "-F"})
	for n := range 4 {
		if got := d.read().Volumes[0].Mounts; got != n {
			t.Errorf("after %d mounts: %d", n, got)
		}
		d.mounted(func(string) {})
	}
}

func TestWhatKeepsNoTraceIsSilent(t *testing.T) {
	for kind, mkfs := range map[string][]string{
		"vfat": {"mkfs.vfat"}, "swap": {"mkswap"}, "unknown": {"wipefs", "-a"},
		"luks": {"cryptsetup", "luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "@", "/proc/self/comm"},
		"dos":  {"sh", "-c", `echo ", , 83" | sfdisk --quiet "$0"`},
	} {
		t.Run(kind, func(t *testing.T) {
			d := newDisk(t, 40<<20)
			d.tool(mkfs)
			w := d.read()
			if w.Volumes[0].Kind != kind || w.Silent().Bytes() != 40<<20 {
				t.Errorf("%ssilent: %v", w, w.Silent())
			}
		})
	}
}

func TestPartitionsAreReadEachForItself(t *testing.T) {
	path := mountstest.Image(t, 96<<20)
	cmd := exec.Command("sfdisk", "--quiet", path)
	cmd.Stdin = strings.NewReader("label: gpt\nsize=8MiB\nsize=40MiB\nsize=40MiB\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ext := mountstest.Image(t, 40<<20)
	mountstest.Run(t, "mkfs.ext4", "-q", "-F", ext)
	mountstest.Run(t, "dd", "if="+ext, "of="+path, "bs=1M", "seek=9", "conv=notrunc", "status=none")
	read := func() witness.Witness {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		w, err := witness.Read(f, 96<<20)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	was := read()
	if len(was.Volumes) != 4 || was.Volumes[0].Kind != "gpt" || was.Volumes[2].Kind != "ext4" || was.Volumes[2].State != witness.Clean {
		t.Fatalf("%s", was)
	}
	if want := extent.NewSet(extent.Extent{Len: 9 << 20}, extent.Extent{Off: 49 << 20, Len: 47 << 20}); !was.Silent().Equal(want) {
		t.Errorf("silent: %v, want %v", was.Silent(), want)
	}
	raw, err := json.Marshal(was)
	var again witness.Witness
	if err = errors.Join(err, json.Unmarshal(raw, &again)); err != nil || len(witness.Compare(was, again)) > 0 {
		t.Errorf("as JSON: %v, %v", err, witness.Compare(was, again))
	}
	mountstest.Run(t, "sfdisk", "--quiet", "--part-label", path, "1", "x")
	if diff := witness.Compare(was, read()); len(diff) != 1 || !strings.HasPrefix(diff[0], "gpt at byte 0: header") {
		t.Errorf("a label: %v", diff)
	}
	was = read()
	mountstest.Run(t, "sfdisk", "--quiet", "--delete", path, "3")
	if diff := witness.Compare(was, read()); len(diff) < 2 {
		t.Errorf("a partition that is gone: %v", diff)
	}
}

// flaky is a disk that fails from the nth read on.
type flaky struct {
	f    *os.File
	left int
}

var errFlaky = errors.New("the disk is gone")

func (r *flaky) ReadAt(p []byte, off int64) (int, error) {
	if r.left--; r.left < 0 {
		return 0, errFlaky
	}
	return r.f.ReadAt(p, off)
}

func TestAnErrorOfTheDiskIsNoAnswer(t *testing.T) {
	for _, mkfs := range [][]string{{"mkfs.ext4", "-q", "-F"}, {"mkfs.xfs", "-q", "-f"}} {
		d := newDisk(t, 320<<20)
		d.tool(mkfs)
		f, err := os.Open(d.path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		n := 0
		for ; ; n++ {
			_, err := witness.Read(&flaky{f, n}, 320<<20)
			if err == nil {
				break
			}
			if !errors.Is(err, errFlaky) {
				t.Errorf("read %d fails: %v", n, err)
			}
		}
		if n < 4 {
			t.Errorf("%v: %d reads only", mkfs, n)
		}
	}
}

// Damage anywhere in what is read is silent, or one that is read; it is never a panic.
func TestDamageIsNoPanic(t *testing.T) {
	for _, mkfs := range [][]string{{"mkfs.ext4", "-q", "-F"}, {"mkfs.xfs", "-q", "-f"}, {"mkfs.btrfs", "-q", "-f"}} {
		d := newDisk(t, 320<<20)
		d.tool(mkfs)
		raw, err := os.ReadFile(d.path)
		if err != nil {
			t.Fatal(err)
		}
		for range 300 {
			at, old := rand.IntN(4096), [8]byte{}
			if rand.IntN(4) == 0 {
				at += 64 << 10
			}
			copy(old[:], raw[at:])
			for i := range 1 + rand.IntN(8) {
				raw[at+i] = byte(rand.Uint32())
			}
			if _, err := witness.Read(memory(raw), int64(len(raw))); err != nil {
				t.Fatalf("byte %d: %v", at, err)
			}
			copy(raw[at:], old[:])
		}
	}
}

type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, m[off:])
	if n < len(p) {
		return n, errors.New("beyond the end")
	}
	return n, nil
}

// FuzzRead finds that no disk is a panic, that nothing beyond it is read, and that a disk is like
// itself. The bytes are put at the beginning and at 64 KiB.
func FuzzRead(f *testing.F) {
	f.Add([]byte("XFSB"), []byte("_BHRfS_M"), int64(1<<20))
	f.Fuzz(func(t *testing.T, first, second []byte, size int64) {
		raw := make([]byte, min(max(size, 0), 1<<20))
		copy(raw, first)
		if len(raw) > 64<<10 {
			copy(raw[64<<10:], second)
		}
		w, err := witness.Read(memory(raw), int64(len(raw)))
		if err != nil {
			t.Fatal(err)
		}
		if diff := witness.Compare(w, w); len(diff) > 0 {
			t.Error(diff)
		}
		if end := w.Silent().End(); end > int64(len(raw)) {
			t.Errorf("silent up to %d of %d", end, len(raw))
		}
	})
}
