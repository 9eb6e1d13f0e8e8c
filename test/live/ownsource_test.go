package live_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// room returns how much of a filesystem is free to everybody, in bytes and of ten
// parts.
func room(t *testing.T, at string) (bytes int64, tenths float64) {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(at, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize, 10 * float64(st.Bavail) / float64(st.Blocks)
}

// wantRoom wants a run to have left about a tenth of the filesystem to others.
func wantRoom(t *testing.T, f finished, at string) {
	t.Helper()
	if strings.Contains(f.err, "no space left") {
		t.Fatalf("the disk in use was filled:\n%s", f.err)
	}
	if bytes, tenths := room(t, at); tenths < 0.5 {
		t.Fatalf("%d bytes are left of the disk in use\n%s", bytes, f.err)
	}
}

// What is kept beside a device lies in the state folder, by default on the root
// filesystem, which may be the source.
func TestStateFolderOnTheSourceDoesNotFillIt(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	dev := loop(t, dir, 2*diskSize)
	at := mount(t, "ext4", dev, dir)
	p.stateDir = filepath.Join(at, "state")
	dst := loop(t, folder(t, dir, "target"), 2*diskSize)
	count := writer(t, at)
	file := filepath.Join(at, "file")
	words := []string{"lies on a filesystem of the source", "--state-dir"}
	p.exits(t, exitOK, words, "mirror", "--dry-run", dev, dst)
	for range 3 {
		fill(t, file, 0, 24*mib)
		p.exits(t, exitOK, words, "mirror", dev, dst)
		p.exits(t, exitOK, nil, "verify", dst)
		must(t, "e2fsck", "-fn", dst)
	}
	bytes, _ := room(t, at)
	fill(t, filepath.Join(at, "more"), 0, bytes-bytes/4)
	f := p.exits(t, exitError, []string{"too little room is left", "hint: ", "--state-dir"}, "mirror", dev, dst)
	wantRoom(t, f, at)
	wantWritable(t, count, thawLimit)
	p.exits(t, exitOK, nil, "verify", dst) // the old one
	if err := os.Remove(filepath.Join(at, "more")); err != nil {
		t.Fatal(err)
	}
	must(t, "sync", "--file-system", at) // ext4 discards what it has freed durably
	must(t, "fstrim", at)
	p.exits(t, exitOK, words, "mirror", dev, dst)
	p.exits(t, exitOK, nil, "verify", dst)
	must(t, "e2fsck", "-fn", dst)
}
