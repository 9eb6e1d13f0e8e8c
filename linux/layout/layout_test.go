package layout_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidemark/extent"
	"tidemark/linux/layout"
)

// tool runs a program and returns what it printed.
func tool(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s (scripts/setup installs what is needed)", args, err, out)
	}
	return string(out)
}

func TestFilesAreFoundInAPartitionOfAnImage(t *testing.T) {
	const off = 1 << 20
	dir := t.TempDir()
	image, content := filepath.Join(dir, "disk.img"), filepath.Join(dir, "content")
	if err := os.WriteFile(content, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "", "truncate", "-s", "32M", image)
	tool(t, "", "mkfs.ext4", "-q", "-F", "-b", "1024", "-E", fmt.Sprintf("offset=%d", off), image, "16M")
	at := fmt.Sprintf("%s?offset=%d", image, off)
	tool(t, "", "debugfs", "-w", "-R", "write "+content+" \"a name\nof two lines\"", at)
	tool(t, "", "debugfs", "-w", "-R", "write "+content+" plain", at)
	tool(t, "", "debugfs", "-w", "-R", "ln plain linked", at)
	block := func(of string) extent.Extent {
		lines := strings.Split(strings.TrimSpace(tool(t, "", "debugfs", "-R", "bmap "+of+" 0", at)), "\n")
		var n int64
		if _, err := fmt.Sscan(lines[len(lines)-1], &n); err != nil {
			t.Fatal(err)
		}
		return extent.Extent{Off: n * 1024, Len: 1024}
	}
	plain := block("plain")
	two := block("\"a name\nof two lines\"")
	ranges := []extent.Extent{
		{Off: plain.Off + 100, Len: 1}, block("<8>"), {Off: 15 << 20, Len: 4096}, {Off: plain.Off - 1024, Len: 3 * 1024}, two,
	}
	got, err := layout.Files(t.Context(), image, off, ranges)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got[0])
	if want := []string{"/linked", "/plain"}; !slices.Equal(got[0], want) || !slices.Equal(got[1], []string{"its journal"}) || len(got[2]) > 0 || !slices.Contains(got[3], "/plain") || !slices.Equal(got[4], []string{"/a name\nof two lines"}) {
		t.Errorf("%q", got)
	}
	if _, err := layout.Files(t.Context(), image, off+512, ranges); err == nil {
		t.Error("a filesystem where there is none")
	}
}

func TestPartitionsWithinAnExtendedOneAreListed(t *testing.T) {
	image := filepath.Join(t.TempDir(), "disk2.img") // a name that ends like that of a partition
	tool(t, "", "truncate", "-s", "64M", image)
	tool(t, "label: dos\n2048,20480,83\n22528,,5\n24576,4096,83\n", "sfdisk", "-q", image)
	got, err := layout.Partitions(t.Context(), image)
	want := []layout.Partition{{1, extent.Extent{Off: 2048 * 512, Len: 20480 * 512}}, {5, extent.Extent{Off: 24576 * 512, Len: 4096 * 512}}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	tool(t, "label: gpt\n2048,20480\n", "sfdisk", "-q", "--wipe", "always", image)
	if got, err = layout.Partitions(t.Context(), image); err != nil || len(got) != 1 || got[0].Number != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}
