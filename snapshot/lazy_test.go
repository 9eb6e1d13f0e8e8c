package snapshot

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// How much of a new ext4 the kernel writes later is known, and of one that is whole, or is none, that
// there is nothing.
func TestInodeTablesThatAreWrittenLater(t *testing.T) {
	const inodes, inode = 16384, 256
	for _, c := range []struct {
		name  string
		args  []string
		later bool
	}{
		{"later", []string{"-E", "nodiscard,lazy_itable_init=1"}, true},
		{"later, small blocks", []string{"-b", "1024", "-E", "nodiscard,lazy_itable_init=1"}, true},
		{"later, 32 bits", []string{"-O", "^64bit", "-E", "nodiscard,lazy_itable_init=1"}, true},
		{"at once", []string{"-E", "nodiscard,lazy_itable_init=0"}, false},
		{"without checksums", []string{"-O", "^metadata_csum,^uninit_bg", "-E", "nodiscard,lazy_itable_init=1"}, false},
		{"none", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, 256<<20); err != nil {
				t.Fatal(err)
			}
			if c.args != nil {
				args := append([]string{"-q", "-F", "-I", "256", "-N", "16384"}, c.args...)
				if out, err := exec.Command("mkfs.ext4", append(args, path)...).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			n, err := lazyTables(f)
			if err != nil || c.later && (n < inodes*inode*9/10 || n > inodes*inode) || !c.later && n != 0 {
				t.Errorf("%d bytes, %v", n, err)
			}
		})
	}
}
