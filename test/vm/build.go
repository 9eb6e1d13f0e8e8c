package vm

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// initName is init's binary, beside the test binary.
const initName = "init"

// Build compiles the tests of a package, as "tidemark/test/vm/guest", for guests: statically, so that they
// need nothing there. The package's testdata folder comes along.
func Build(t testing.TB, pkg string) Program {
	t.Helper()
	bin := filepath.Join(t.TempDir(), path.Base(pkg)+".test")
	goTool(t, "test", "-c", "-ldflags=-s -w", "-o", bin, pkg)
	goTool(t, "build", "-ldflags=-s -w", "-o", filepath.Join(filepath.Dir(bin), initName), "tidemark/test/vm/init")
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("%s has no tests: %v", pkg, err)
	}
	p := Program{Path: bin, Package: pkg}
	data := filepath.Join(strings.TrimSpace(goTool(t, "list", "-f", "{{.Dir}}", pkg)), "testdata")
	_, err := os.Stat(data)
	switch {
	case err == nil:
		p.testdata = data
	case !errors.Is(err, fs.ErrNotExist):
		t.Fatal(err)
	}
	return p
}

// BuildCommand compiles a command, as "tidemark/cmd/tidemark", for guests and returns
// the binary's path on the host, to be given to a guest in Config.Files.
func BuildCommand(t testing.TB, pkg string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), path.Base(pkg))
	goTool(t, "build", "-ldflags=-s -w", "-o", bin, pkg)
	return bin
}

// BuildTidemark compiles tidemark, and what an initramfs has of it, and returns the path of the first
// on the host. Debian.InstallTidemark installs both.
func BuildTidemark(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	goTool(t, "build", "-ldflags=-s -w", "-o", dir+"/", "tidemark/cmd/tidemark", "tidemark/cmd/tidemark-boot")
	return filepath.Join(dir, "tidemark")
}

// goTool runs the go command without cgo and returns its output.
func goTool(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}
