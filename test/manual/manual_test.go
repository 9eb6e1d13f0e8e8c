package manual

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark/internal/pages"
	"tidemark/linux/mounts/mountstest"
)

const pageTimeout = 2 * time.Minute

// tidemark is the program under test.
var tidemark string

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Stderr.WriteString("these tests attach devices and mount filesystems: run them as root\n")
		os.Exit(1)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "tidemark-manual-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	tidemark = filepath.Join(dir, "tidemark")
	cmd := exec.Command("go", "build", "-o", tidemark, "tidemark/cmd/tidemark")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

func TestTheCommandsOfTheManualWork(t *testing.T) {
	for _, path := range manual(t) {
		blocks, err := pages.Blocks(path)
		if err != nil {
			t.Fatal(err)
		}
		script := scriptOf(filepath.Base(path), blocks)
		if script == "" {
			continue // a page to look things up in
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			start := time.Now()
			if out, err := inWorld(t, script); err != nil {
				t.Fatalf("%v (scripts/setup installs what is missing)\n%s", err, out)
			}
			t.Logf("%.1f s", time.Since(start).Seconds())
		})
	}
}

// manual returns the paths of all pages.
func manual(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("../../docs/manual/*.md")
	if err != nil || len(found) == 0 {
		t.Fatalf("no pages in docs/manual: %v", err)
	}
	return append([]string{"../../README.md"}, found...)
}

// scriptOf makes a script of the blocks of a page that are run here. What builds the
// program has been done.
func scriptOf(page string, blocks []pages.Block) string {
	var script strings.Builder
	for _, b := range blocks {
		if b.Info != "sh" {
			continue
		}
		fmt.Fprintf(&script, ": %s, line %d\n", page, b.Line)
		for i, line := range b.Code {
			if strings.HasPrefix(line, "make ") {
				continue
			}
			script.WriteString(checked(line, fmt.Sprintf("%s, line %d", page, b.Line+i)))
		}
	}
	return script.String()
}

// checked is a line of shell that fails when it does not end as the page says.
func checked(line, where string) string {
	command, status := pages.Exit(line)
	if status == 0 {
		return line + "\n"
	}
	return fmt.Sprintf("status=0\n{ %s; } || status=$?\n[ $status -eq %d ] || { echo '%s: exit status' $status >&2; exit 99; }\n", command, status, where)
}

// inWorld runs a script in the world of the manual and returns what it said, with each
// command before it.
func inWorld(t *testing.T, script string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), pageTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "testdata/world", dir, tidemark, file)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestALineThatDoesNotEndAsThePageSaysFailsIt(t *testing.T) {
	for _, c := range []struct {
		line string
		ok   bool
	}{
		{"tidemark bogus # exit 2", true},
		{"tidemark bogus # exit 6", false},
		{"tidemark version # exit 1", false},
		{"tidemark bogus", false},
		{"tidemark version", true},
	} {
		script := scriptOf("page", []pages.Block{{Info: "sh", Line: 1, Code: []string{c.line, "true"}}})
		script = "PATH=" + filepath.Dir(tidemark) + ":$PATH\n" + script
		if err := exec.Command("sh", "-eu", "-c", script).Run(); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.line, err)
		}
	}
}

func TestAPageLeavesNothingBehind(t *testing.T) {
	const script = "tidemark mirror /dev/vdb1 /backup/vdb1.img\ncat /sys/block/loop*/loop/backing_file\nexit 42\n"
	out, err := inWorld(t, script)
	mark := strings.ReplaceAll(t.Name(), "/", "-") // in the path of t.TempDir
	if err == nil || err.Error() != "exit status 42" || !strings.Contains(out, mark) {
		t.Fatalf("%v, want exit status 42\n%s", err, out)
	}
	mountstest.Eventually(t, "detaching the disks", func() bool {
		files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		if err != nil {
			t.Fatal(err)
		}
		return !slices.ContainsFunc(files, func(f string) bool {
			text, err := os.ReadFile(f)
			return err == nil && strings.Contains(string(text), mark)
		})
	})
}
