package fiemap_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/linux/fiemap"
	"tidemark/linux/mounts/mountstest"
)

// What is written through a file is found on the device at the file's extents, and an immutable
// file cannot be removed.
func TestExtentsAreWhereTheFileLies(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			disk := mountstest.Disk(t, 320<<20)
			mountstest.Mkfs(t, kind, disk)
			at := mountstest.Mount(t, disk)
			f, err := os.Create(filepath.Join(at, "file"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			const size = 3 << 20
			if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
				t.Fatal(err)
			}
			unwritten, err := fiemap.Of(f)
			if err != nil {
				t.Fatal(err)
			}
			content := bytes.Repeat([]byte("tide"), size/4)
			if _, err := f.WriteAt(content, 0); err != nil {
				t.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
			extents, err := fiemap.Of(f)
			if err != nil || len(extents) == 0 || extents[0].Physical != unwritten[0].Physical {
				t.Fatalf("%v, %v, before the write %v", extents, err, unwritten)
			}
			raw, err := os.ReadFile(disk)
			if err != nil {
				t.Fatal(err)
			}
			sum := int64(0)
			for _, e := range extents {
				if !bytes.Equal(raw[e.Physical:e.Physical+e.Len], content[e.Logical:e.Logical+e.Len]) {
					t.Errorf("%+v holds something else", e)
				}
				sum += e.Len
			}
			if sum != size {
				t.Errorf("%d bytes in extents", sum)
			}
			if err := fiemap.SetImmutable(f, true); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(f.Name()); !errors.Is(err, unix.EPERM) {
				t.Errorf("an immutable file: %v", err)
			}
			if err := fiemap.SetImmutable(f, false); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(f.Name()); err != nil {
				t.Error(err)
			}
		})
	}
}

// A file whose blocks are shared is refused.
func TestSharedExtentsAreRefused(t *testing.T) {
	disk := mountstest.Disk(t, 320<<20)
	mountstest.Mkfs(t, "xfs", disk)
	at := mountstest.Mount(t, disk)
	a, err := os.Create(filepath.Join(at, "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if _, err := a.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	b, err := os.Create(filepath.Join(at, "b"))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := unix.IoctlFileClone(int(b.Fd()), int(a.Fd())); err != nil {
		t.Fatal(err)
	}
	if _, err := fiemap.Of(a); !errors.Is(err, fiemap.ErrUnfit) {
		t.Errorf("%v", err)
	}
}

// What is free is about what the filesystem counts as free, and nothing of it is a file's.
func TestFreeBytesAreNobodys(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			disk := mountstest.Disk(t, 320<<20)
			mountstest.Mkfs(t, kind, disk)
			at := mountstest.Mount(t, disk)
			var taken []fiemap.Extent
			for i := range 8 {
				f, err := os.Create(filepath.Join(at, string(rune('a'+i))))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if _, err := f.Write(bytes.Repeat([]byte("tide"), 1<<20)); err != nil {
					t.Fatal(err)
				}
				if i%2 == 1 {
					if err := os.Remove(f.Name()); err != nil { // in use as long as it is open
						t.Fatal(err)
					}
				}
				extents, err := fiemap.Of(f)
				if err != nil {
					t.Fatal(err)
				}
				taken = append(taken, extents...)
			}
			unix.Sync()
			top, err := os.Open(at)
			if err != nil {
				t.Fatal(err)
			}
			defer top.Close()
			free, err := fiemap.Free(top)
			if err != nil {
				t.Fatal(err)
			}
			sum, last := int64(0), int64(0)
			for _, e := range free {
				if e.Physical < last {
					t.Errorf("%+v begins before byte %d", e, last)
				}
				last = e.Physical + e.Len
				sum += e.Len
				for _, x := range taken {
					if x.Physical < last && e.Physical < x.Physical+x.Len {
						t.Errorf("%+v is free, and a file's: %+v", e, x)
					}
				}
			}
			var st unix.Statfs_t
			if err := unix.Statfs(at, &st); err != nil {
				t.Fatal(err)
			}
			if counted := int64(st.Bfree) * st.Bsize; sum < counted*9/10 || sum > counted*12/10 {
				t.Errorf("%d bytes are free, and %d by statfs", sum, counted)
			}
		})
	}
}
