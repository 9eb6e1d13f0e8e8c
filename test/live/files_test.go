package live_test

import (
	"crypto/sha256"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"tidemark/block"
)

const (
	mib      = 1 << 20
	diskSize = 128 * mib
)

// fill writes n bytes that no two places share to a file or a device at off, past
// the page cache where it is a device.
func fill(t testing.TB, path string, off, n int64) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d, err := block.Open(path, block.Options{Write: true, Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	random := rand.NewChaCha8([32]byte{byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32())})
	buf := block.AlignedBuffer(mib)
	for end := off + n; off < end; off += int64(len(buf)) {
		buf = buf[:min(mib, end-off)]
		random.Read(buf)
		if _, err := d.WriteAt(buf, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
}

// damage turns the bits of one byte of a file over.
func damage(t testing.TB, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0xff
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// sameContent wants two files or devices to be equal, byte for byte.
func sameContent(t testing.TB, a, b string) {
	t.Helper()
	must(t, "cmp", a, b)
}

// seen is how a file looked: none of it may change unless the file is written to.
type seen struct {
	size, mtime int64
	hash        [sha256.Size]byte
}

// look takes down all files at and below the paths; what is missing is left out.
// The lock is no content: every run may make it.
func look(t testing.TB, paths ...string) map[string]seen {
	t.Helper()
	all := map[string]seen{}
	for _, root := range paths {
		if !exists(root) {
			continue
		}
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || e.Name() == "lock" {
				return err
			}
			all[path], err = lookAt(path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func lookAt(path string) (seen, error) {
	f, err := os.Open(path)
	if err != nil {
		return seen{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return seen{}, err
	}
	s := seen{size: info.Size(), mtime: info.ModTime().UnixNano()}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return seen{}, err
	}
	h.Sum(s.hash[:0])
	return s, nil
}

// untouched wants the paths to be just as they were.
func untouched(t testing.TB, was map[string]seen, paths ...string) {
	t.Helper()
	now := look(t, paths...)
	for path, s := range was {
		switch n, ok := now[path]; {
		case !ok:
			t.Errorf("%s is gone", path)
		case n.hash != s.hash || n.size != s.size:
			t.Errorf("%s has another content", path)
		case n.mtime != s.mtime:
			t.Errorf("%s was written to", path)
		}
	}
	for path := range now {
		if _, ok := was[path]; !ok {
			t.Errorf("%s was made", path)
		}
	}
}

// sameBytes wants the file to hold what it did, whenever it was written to.
func sameBytes(t testing.TB, was seen, path string) {
	t.Helper()
	now, err := lookAt(path)
	if err != nil {
		t.Fatal(err)
	}
	if now.size != was.size || now.hash != was.hash {
		t.Errorf("%s has another content", path)
	}
}

// folder makes one below dir.
func folder(t testing.TB, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// tmpfs mounts a small filesystem in memory.
func tmpfs(t testing.TB, dir, size string) string {
	t.Helper()
	at := folder(t, dir, "small")
	must(t, "mount", "-t", "tmpfs", "-o", "size="+size, "tmpfs", at)
	t.Cleanup(func() { must(t, "umount", at) })
	return at
}

// grow gives a tmpfs another size.
func grow(t testing.TB, at, size string) {
	t.Helper()
	must(t, "mount", "-o", "remount,size="+size, at)
}
