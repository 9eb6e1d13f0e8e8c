package era

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// theCase is one image made by a real kernel, and what is known about it.
type theCase struct {
	name, dir string
	image     []byte
	expect    struct {
		Superblock any `json:"superblock"`
		SpaceMap   any `json:"space_map"`
	}
}

func (c *theCase) file(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(name, ".zst") {
		b = unzstd(t, b)
	}
	return b
}

func (c *theCase) has(name string) bool {
	_, err := os.Stat(filepath.Join(c.dir, name))
	return err == nil
}

// list returns the parameters N of the files prefix-N.xml.
func (c *theCase) list(t testing.TB, prefix string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(c.dir, prefix+"-*.xml"))
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), prefix+"-"), ".xml")
	}
	return files
}

func (c *theCase) open(t testing.TB) *Metadata {
	t.Helper()
	return openBytes(t, c.image)
}

func openBytes(t testing.TB, image []byte) *Metadata {
	t.Helper()
	m, err := Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func unzstd(t testing.TB, b []byte) []byte {
	t.Helper()
	d, err := zstd.NewReader(nil, zstd.WithDecoderMaxWindow(1<<27), zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	out, err := d.DecodeAll(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// caseDirs returns testdata/cases and, when a folder shared/cases/era lies
// beside one of the folders above, that as well.
func caseDirs(t testing.TB) []string {
	t.Helper()
	dirs := []string{filepath.Join("testdata", "cases")}
	at, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for up := at; up != filepath.Dir(up); up = filepath.Dir(up) {
		shared := filepath.Join(up, "shared", "cases", "era")
		if _, err := os.Stat(shared); err == nil {
			return append(dirs, shared)
		}
	}
	return dirs
}

// allCases returns every case, those of testdata first, and of others those
// whose image differs.
func allCases(t testing.TB) []*theCase {
	t.Helper()
	var cases []*theCase
	known := map[string]bool{}
	for _, dir := range caseDirs(t) {
		found, err := filepath.Glob(filepath.Join(dir, "*", "meta.img.zst"))
		if err != nil || len(found) == 0 {
			t.Fatalf("no cases in %s: %v", dir, err)
		}
		for _, f := range found {
			c := loadCase(t, filepath.Dir(f))
			if key := c.name + string(c.image); !known[key] {
				known[key] = true
				cases = append(cases, c)
			}
		}
	}
	return cases
}

// goodCases returns the cases whose trees are undamaged.
func goodCases(t testing.TB) []*theCase {
	t.Helper()
	var good []*theCase
	for _, c := range allCases(t) {
		if strings.HasPrefix(c.name, "c16-") && !strings.HasPrefix(c.name, "c16-corrupt.sm-") || c.name == "c20-all-zero" {
			continue
		}
		good = append(good, c)
	}
	return good
}

// theCaseNamed returns one case of testdata.
func theCaseNamed(t testing.TB, name string) *theCase {
	t.Helper()
	return loadCase(t, filepath.Join("testdata", "cases", name))
}

func loadCase(t testing.TB, dir string) *theCase {
	t.Helper()
	c := &theCase{dir: dir, name: filepath.Base(dir)}
	c.image = c.file(t, "meta.img.zst")
	if err := json.Unmarshal(c.file(t, "expect.json"), &c.expect); err != nil {
		t.Fatal(err)
	}
	return c
}
