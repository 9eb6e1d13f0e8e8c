// Package tidemark_test checks the shape of the whole module: which package may
// import which, and the rules of style that a program can judge.
package tidemark_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module       = "tidemark"
	maxFuncLines = 70
)

// floors lists every package from the ground up; "…/..." stands for a folder and all
// that it has. A package imports only from floors below its own, and from folders inside
// its own.
var floors = [][]string{
	{"extent", "words", "linux/sysfs", "linux/atomicfile", "linux/reexec", "linux/shell"},
	{"block"},
	{"format/pdata"},
	{"format/*"},
	{"witness"},
	{"linux/blkid", "linux/bpf", "linux/btrfs", "linux/dm", "linux/fiemap", "linux/fsfreeze", "linux/layout", "linux/loop", "linux/mounts/...", "linux/openers", "linux/zram"},
	{"linux/dmera", "linux/dmhold", "linux/dmsnap", "linux/dmthin", "linux/rawfile"},
	{"linux/lvm"},
	{"track", "view", "vault/store"},
	{"track/history"},
	{"track/bpf", "track/cow", "track/era", "track/thin", "vault"},
	{"snapshot"},
	{"transfer/browse", "transfer/names", "transfer/traces", "transfer/transaction"},
	{"transfer", "transfer/inuse", "transfer/origin", "transfer/parts"},
	{"transfer/mirror", "transfer/backup", "transfer/tracking", "boot"},
	{"transfer/apply", "transfer/export", "transfer/target", "boot/adopt", "boot/early"},
	{"transfer/merge", "transfer/restore", "transfer/running", "transfer/streams"},
	{"transfer/cowfiles", "transfer/stores"},
	{"transfer/copies", "transfer/pairs", "transfer/status", "transfer/survey"},
	{"agent/..."},
	{"cmd/tidemark/...", "cmd/tidemark-boot"},
	{"test/...", "bench", "internal/*"}, // for tests and measurements only
}

// never lists what a package must not import although it is on a lower floor.
var never = map[string]string{
	"format/*": "linux/*",
}

var vagueNames = []string{"base", "common", "helper", "helpers", "misc", "shared", "types", "util", "utils"}

// goPackage is the shipped source of one folder.
type goPackage struct {
	dir   string // relative to the module, "/" between
	fset  *token.FileSet
	files map[string]*ast.File
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	found := map[string]*goPackage{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "tools") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		dir := filepath.ToSlash(filepath.Dir(name))
		if found[dir] == nil {
			found[dir] = &goPackage{dir: dir, fset: token.NewFileSet(), files: map[string]*ast.File{}}
		}
		found[dir].files[name], err = parser.ParseFile(found[dir].fset, name, nil, parser.ParseComments)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var all []goPackage
	for _, p := range found {
		all = append(all, *p)
	}
	slices.SortFunc(all, func(a, b goPackage) int { return strings.Compare(a.dir, b.dir) })
	if len(all) == 0 {
		t.Fatal("no packages found")
	}
	return all
}

func (p goPackage) imports(t *testing.T) []string {
	var all []string
	for _, f := range p.files {
		for _, spec := range f.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// floor returns the floor of dir and the folder that owns it. It returns -1 for a folder
// without a floor.
func floor(dir string) (int, string) {
	for n, entries := range floors {
		for _, entry := range entries {
			if owner, ok := owner(dir, entry); ok {
				return n, owner
			}
		}
	}
	return -1, ""
}

// owner matches dir against an entry of floors.
func owner(dir, entry string) (string, bool) {
	if folder, ok := strings.CutSuffix(entry, "/..."); ok {
		return folder, dir == folder || strings.HasPrefix(dir, folder+"/")
	}
	ok, err := path.Match(entry, dir)
	return dir, ok && err == nil
}

func TestImportsRunDownTheFloors(t *testing.T) {
	for _, p := range packages(t) {
		own, owner := floor(p.dir)
		if own < 0 {
			t.Errorf("%s has no floor: add it to floors, and to docs/architecture.md", p.dir)
			continue
		}
		for _, imported := range p.imports(t) {
			dir, inside := strings.CutPrefix(imported, module+"/")
			if !inside {
				continue
			}
			theirs, theirOwner := floor(dir)
			if owner != theirOwner && theirs >= own {
				t.Errorf("%s imports %s, which is not below it", p.dir, dir)
			}
			if forbidden(p.dir, dir) {
				t.Errorf("%s imports %s, which it must not know", p.dir, dir)
			}
		}
	}
}

// An importer of package track gets the interface, the marks and the errors, and links
// nothing that talks to the kernel.
func TestTrackLinksNoKernelPackage(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", module+"/track").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(dep, module+"/linux/") || strings.Contains(dep, "cilium") || strings.Contains(dep, "golang.org/x/sys") {
			t.Errorf("track links %s", dep)
		}
	}
}

func forbidden(importer, imported string) bool {
	for from, to := range never {
		_, a := owner(importer, from)
		_, b := owner(imported, to)
		if a && b {
			return true
		}
	}
	return false
}

func TestEveryPackageSaysWhatItOwns(t *testing.T) {
	for _, p := range packages(t) {
		comments := 0
		for name, f := range p.files {
			if f.Doc == nil {
				continue
			}
			comments++
			start := "Package " + f.Name.Name + " "
			if f.Name.Name == "main" {
				start = "Command "
			}
			if !strings.HasPrefix(f.Doc.Text(), start) {
				t.Errorf("%s: the package comment does not start with %q", name, start)
			}
		}
		if comments != 1 {
			t.Errorf("%s has %d package comments, want one", p.dir, comments)
		}
	}
}

func TestPackagesAreNamedAfterWhatTheyOwn(t *testing.T) {
	for _, p := range packages(t) {
		for name := range strings.SplitSeq(p.dir, "/") {
			if slices.Contains(vagueNames, name) {
				t.Errorf("%s: %q says nothing", p.dir, name)
			}
		}
	}
}

func TestUnsafeIsConfined(t *testing.T) {
	for _, p := range packages(t) {
		for name, f := range p.files {
			for _, spec := range f.Imports {
				if spec.Path.Value == `"unsafe"` && !strings.HasSuffix(name, "_unsafe.go") && !ast.IsGenerated(f) {
					t.Errorf("%s imports unsafe; only *_unsafe.go may", name)
				}
			}
		}
	}
}

func TestFunctionsAreShort(t *testing.T) {
	for _, p := range packages(t) {
		for name, f := range p.files {
			if ast.IsGenerated(f) {
				continue
			}
			for _, decl := range f.Decls {
				fn, ok := decl.(*ast.FuncDecl)
				if !ok {
					continue
				}
				lines := p.fset.Position(fn.End()).Line - p.fset.Position(fn.Pos()).Line + 1
				if lines > maxFuncLines {
					t.Errorf("%s: %s has %d lines, at most %d", name, fn.Name.Name, lines, maxFuncLines)
				}
			}
		}
	}
}
