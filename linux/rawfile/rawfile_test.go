package rawfile_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/linux/mounts/mountstest"
	"tidemark/linux/rawfile"
)

// mounted makes a filesystem on a disk of its own, and returns a path in it.
func mounted(t *testing.T, kind string, options ...string) (disk, path string) {
	t.Helper()
	disk = mountstest.Disk(t, 320<<20)
	mountstest.Mkfs(t, kind, disk)
	return disk, filepath.Join(mountstest.Mount(t, disk, options...), "folder", "file")
}

func open(t *testing.T, path string) *rawfile.File {
	t.Helper()
	f, err := rawfile.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func holds(t *testing.T, path string, want []byte) {
	t.Helper()
	f := open(t, path)
	got, err := f.Read()
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("it holds %d bytes (%v), want %d", len(got), err, len(want))
	}
}

func TestWhatIsWrittenIsReadWhileTheFilesystemIsReadOnly(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			_, path := mounted(t, kind)
			if _, err := rawfile.Open(path); !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			for range 2 { // the second replaces the first
				if err := rawfile.Create(path); err != nil {
					t.Fatal(err)
				}
				holds(t, path, nil)
			}
			if err := os.Remove(path); err == nil {
				t.Error("anybody can remove it")
			}
			mountstest.Run(t, "mount", "-o", "remount,ro", filepath.Dir(filepath.Dir(path)))
			for _, size := range []int{1, 4016, 4017, 100000, rawfile.Room, 7, 0} {
				content := bytes.Repeat([]byte("content"), size/7+1)[:size]
				if err := open(t, path).Write(content); err != nil {
					t.Fatal(err)
				}
				holds(t, path, content)
			}
			if err := open(t, path).Write(make([]byte, rawfile.Room+1)); !errors.Is(err, rawfile.ErrNoRoom) {
				t.Error(err)
			}
			mountstest.Run(t, "mount", "-o", "remount,rw", filepath.Dir(filepath.Dir(path)))
			if err := rawfile.Remove(path); err != nil {
				t.Error(err)
			}
		})
	}
}

// Any one byte of what was written may be another.
func TestDamageIsTold(t *testing.T) {
	disk, path := mounted(t, "ext4")
	if err := rawfile.Create(path); err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("content"), 1000)
	f := open(t, path)
	if err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	raw, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	begin := f.Places().Extents()[0].Off
	for _, c := range []struct {
		at   int64 // of the file
		want error
	}{
		{0, rawfile.ErrUnfit},
		{20, rawfile.ErrUnfit},
		{4096 + 8, rawfile.ErrUnfit},
		{5*4096 + 24, rawfile.ErrUnfit},
		{32, rawfile.ErrDamaged},
		{40, rawfile.ErrDamaged},
		{47, rawfile.ErrDamaged},
		{50, rawfile.ErrDamaged},
		{4096 + 90, rawfile.ErrDamaged},
	} {
		var b [1]byte
		flip := func() {
			t.Helper()
			_, err := raw.ReadAt(b[:], begin+c.at)
			b[0] ^= 0x40
			if err == nil {
				_, err = raw.WriteAt(b[:], begin+c.at)
			}
			if err = errors.Join(err, raw.Sync()); err != nil {
				t.Fatal(err)
			}
		}
		flip()
		f, err := rawfile.Open(path)
		if err == nil {
			_, err = f.Read()
			f.Close()
		}
		if !errors.Is(err, c.want) {
			t.Errorf("byte %d: %v, want %v", c.at, err, c.want)
		}
		flip()
		holds(t, path, content)
	}
}

func TestAFileThatIsNotOursIsNotWritten(t *testing.T) {
	_, path := mounted(t, "ext4")
	if err := rawfile.Create(path); err != nil {
		t.Fatal(err)
	}
	refused := func(words string) {
		t.Helper()
		if _, err := rawfile.Open(path); !errors.Is(err, rawfile.ErrUnfit) || !strings.Contains(err.Error(), words) {
			t.Errorf("%v, want %q", err, words)
		}
	}
	mountstest.Run(t, "chattr", "-i", path)
	refused("immutable: false")
	if err := os.Truncate(path, rawfile.Size/2); err != nil {
		t.Fatal(err)
	}
	mountstest.Run(t, "chattr", "+i", path)
	refused("it has 2097152 bytes")
	mountstest.Run(t, "chattr", "-i", path)
	if err := os.Truncate(path, rawfile.Size); err != nil {
		t.Fatal(err)
	}
	mountstest.Run(t, "chattr", "+i", path)
	refused("only 2097152 of 4194304 bytes have a place")
	mountstest.Run(t, "chattr", "-i", path)
	if err := os.WriteFile(path, make([]byte, rawfile.Size), 0o600); err != nil {
		t.Fatal(err)
	}
	mountstest.Run(t, "sync", path)
	mountstest.Run(t, "chattr", "+i", path)
	refused("the disk holds something else")
	if err := rawfile.Create(path); err != nil {
		t.Fatal(err)
	}
	holds(t, path, nil)
}

func TestOtherFilesystemsAreRefused(t *testing.T) {
	disk := mountstest.Disk(t, 128<<20)
	mountstest.Mkfs(t, "btrfs", disk)
	path := filepath.Join(mountstest.Mount(t, disk), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := rawfile.Open(path); !errors.Is(err, rawfile.ErrUnfit) || !strings.Contains(err.Error(), "neither ext4 nor XFS") {
		t.Error(err)
	}
}
