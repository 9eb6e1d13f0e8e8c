package era

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// tool runs one of Debian's dm-era tools, version 0.9.
func tool(t testing.TB, name string, args ...string) (stdout string, err error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is missing: apt-get install thin-provisioning-tools", name)
	}
	cmd := exec.Command(path, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err = cmd.Run(); err != nil {
		t.Logf("%s %v: %v: %s", name, args, err, errs.String())
	}
	return out.String(), err
}

func mustTool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := tool(t, name, args...)
	if err != nil {
		t.Fatalf("%s %v: %v", name, args, err)
	}
	return out
}

// writeFile puts an image where a tool can read it.
func writeFile(t testing.TB, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// memory is a metadata device of fixed size in memory.
type memory []byte

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m)) {
		return 0, os.ErrInvalid
	}
	return copy(m[off:], p), nil
}

func openFile(t testing.TB, path string) *Metadata {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	m, err := Open(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// tools1 returns the folder of thin-provisioning-tools 1.x. No release of Debian that
// has 0.9 has it too, so it is unpacked beside: in ERA_TOOLS_1, or where
// scripts/bench-tools does it.
func tools1(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("ERA_TOOLS_1")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(cache, "tidemark/bench/trixie/usr/sbin")
	}
	if _, err := os.Stat(filepath.Join(dir, "era_dump")); err != nil {
		t.Fatalf("thin-provisioning-tools 1.x: %v: scripts/bench-tools fetches it", err)
	}
	return dir
}

// TestTools1Agree compares with thin-provisioning-tools 1.x.
func TestTools1Agree(t *testing.T) {
	dir := tools1(t)
	for _, c := range goodCases(t) {
		if !c.has("dump.xml.zst") || c.open(t).super.NrBlocks == 0 {
			continue
		}
		xml, err := dumpXML(c.open(t).Live(), DumpOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ours := writeFile(t, restoreXML(t, xml, 2*len(c.image)/BlockSize))
		mustTool(t, filepath.Join(dir, "era_check"), ours)
		// 1.x leaves out the last newline.
		if got := mustTool(t, filepath.Join(dir, "era_dump"), ours); got+"\n" != xml {
			t.Errorf("%s: era_dump 1.x prints our metadata differently", c.name)
		}
		logical, err := dumpXML(c.open(t).Live(), DumpOptions{Logical: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := mustTool(t, filepath.Join(dir, "era_dump"), "--logical", writeFile(t, c.image)); got+"\n" != logical {
			t.Errorf("%s: era_dump 1.x --logical differs", c.name)
		}
		theirs := writeFile(t, make([]byte, 2*len(c.image)))
		mustTool(t, filepath.Join(dir, "era_restore"), "-q", "-i", writeFile(t, []byte(xml)), "-o", theirs)
		image, err := os.ReadFile(theirs)
		if err != nil {
			t.Fatal(err)
		}
		mustBeSound(t, image)
		if got, err := dumpXML(openBytes(t, image).Live(), DumpOptions{}); err != nil || got != xml {
			t.Errorf("%s: era_restore 1.x made something else (%v)", c.name, err)
		}
	}
}
