package openers_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/linux/openers"
)

// file makes a file, and opens it again as others do.
func file(t *testing.T) (path string, again func(flags int) *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, func(flags int) *os.File {
		f, err := os.OpenFile(path, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
}

func of(t *testing.T, f *os.File) openers.Use {
	t.Helper()
	u, err := openers.Of(f)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestAWriterIsSeen(t *testing.T) {
	_, open := file(t)
	f := open(os.O_RDONLY)
	open(os.O_RDONLY)
	if u := of(t, f); u.InUse() || u.String() != "" {
		t.Errorf("nobody writes to it: %+v", u)
	}
	w := open(os.O_RDWR)
	if u := of(t, f); !u.Writers || u.Locked || !strings.Contains(u.String(), "openers.test (pid ") {
		t.Errorf("it is open for writing: %+v", u)
	}
	w.Close()
	if u := of(t, f); u.InUse() {
		t.Errorf("it is closed by now: %+v", u)
	}
}

// A file that was mapped and closed can be written to still, and no descriptor shows it.
func TestAWriterThatHasNoDescriptorIsSeen(t *testing.T) {
	_, open := file(t)
	f, w := open(os.O_RDONLY), open(os.O_RDWR)
	m, err := unix.Mmap(int(w.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	if u := of(t, f); !u.Writers || !strings.Contains(u.String(), "by another program") {
		t.Errorf("it is mapped: %+v", u)
	}
	if err := unix.Munmap(m); err != nil {
		t.Fatal(err)
	}
	if u := of(t, f); u.InUse() {
		t.Errorf("nobody has it: %+v", u)
	}
}

// QEMU locks single bytes far into the file, shared, also of an image that it only reads.
func TestALockIsSeen(t *testing.T) {
	_, open := file(t)
	f, l := open(os.O_RDONLY), open(os.O_RDONLY)
	lock := unix.Flock_t{Type: unix.F_RDLCK, Start: 201, Len: 1}
	if err := unix.FcntlFlock(l.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
	if u := of(t, f); u.Writers || !u.Locked {
		t.Errorf("it is locked: %+v", u)
	}
}

func TestAProgramOfAnotherNamespaceIsSeen(t *testing.T) {
	path, open := file(t)
	f := open(os.O_RDONLY)
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", "exec 3<>"+path+"; echo ready; cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	if u := of(t, f); !u.Writers {
		t.Errorf("it is open: %+v", u)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if u := of(t, f); u.InUse() {
		t.Errorf("nobody has it: %+v", u)
	}
}
