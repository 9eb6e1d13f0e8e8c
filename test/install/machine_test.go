package install_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"tidemark/test/vm"
)

// must runs a program and returns what it printed.
func must(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// try runs a program that may fail.
func try(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MANWIDTH=80")
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("%v: run scripts/setup", err)
	}
	return string(out), err
}

// built runs make build once: the tests run at the same time.
var built = sync.OnceValues(func() ([]byte, error) {
	return exec.Command("make", "-C", "../..", "build").CombinedOutput()
})

// build makes the program, as users get it.
func build(t testing.TB) {
	t.Helper()
	if out, err := built(); err != nil {
		t.Fatalf("make build: %v\n%s", err, out)
	}
}

// runMake runs make in the module's folder.
func runMake(t testing.TB, args ...string) string {
	t.Helper()
	return must(t, "make", append([]string{"-C", "../.."}, args...)...)
}

// packaged makes the package of that version and returns its path.
func packaged(t testing.TB, kind, version string) string {
	t.Helper()
	dir := t.TempDir()
	build(t)
	must(t, "env", "OUT="+dir, "PACKAGE_VERSION="+version, "../../scripts/packages", kind)
	found, err := filepath.Glob(dir + "/*." + kind)
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v, %v", kind, found, err)
	}
	return found[0]
}

// debian is a clean Debian root without anything of tidemark's.
type debian struct {
	dir string
	t   testing.TB
}

func newDebian(t testing.TB) debian {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("run as root: packages are installed into a Debian root")
	}
	return debian{vm.CleanDebian(t), t}
}

func (d debian) in(path string) string { return filepath.Join(d.dir, path) }

// run runs a program of the root in it.
func (d debian) run(args ...string) string {
	d.t.Helper()
	return must(d.t, "chroot", append([]string{d.dir}, args...)...)
}

// fails runs a program of the root that must fail, and returns what it printed.
func (d debian) fails(args ...string) string {
	d.t.Helper()
	out, err := try(d.t, "chroot", append([]string{d.dir}, args...)...)
	if err == nil {
		d.t.Fatalf("%q did not fail:\n%s", args, out)
	}
	return out
}

// add copies a file of the host into the root's /root and returns its path there.
func (d debian) add(file string) string {
	d.t.Helper()
	to := "/root/" + filepath.Base(file)
	must(d.t, "cp", file, d.in(to))
	return to
}

func (d debian) write(path, content string) {
	d.t.Helper()
	if err := os.MkdirAll(filepath.Dir(d.in(path)), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(d.in(path), []byte(content), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d debian) read(path string) string {
	d.t.Helper()
	data, err := os.ReadFile(d.in(path))
	if err != nil {
		d.t.Fatal(err)
	}
	return string(data)
}

// has fails the test unless the path is there, or is not.
func (d debian) has(path string, want bool) {
	d.t.Helper()
	_, err := os.Lstat(d.in(path))
	if have := err == nil; have != want {
		d.t.Errorf("%s is there: %v, want %v", path, have, want)
	}
}
