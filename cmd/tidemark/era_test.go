package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/testscript"

	"tidemark/format/era"
)

const eraCases = "../../format/era/testdata/cases"

// unpacks returns a command that unpacks one of the cases that lie in a folder:
// COMMAND NAME FOLDER.
func unpacks(cases string) func(ts *testscript.TestScript, neg bool, args []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) != 2 {
			ts.Fatalf("usage: NAME FOLDER")
		}
		files, err := filepath.Glob(filepath.Join(cases, args[0], "*"))
		ts.Check(err)
		if len(files) == 0 {
			ts.Fatalf("no case %s", args[0])
		}
		dir := ts.MkAbs(args[1])
		ts.Check(os.MkdirAll(dir, 0o755))
		for _, file := range files {
			b, err := os.ReadFile(file)
			ts.Check(err)
			name, packed := strings.CutSuffix(filepath.Base(file), ".zst")
			if packed {
				b, err = unzstd(b)
				ts.Check(err)
			}
			ts.Check(os.WriteFile(filepath.Join(dir, name), b, 0o600))
		}
	}
}

func unzstd(b []byte) ([]byte, error) {
	d, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderMaxWindow(1<<27), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return io.ReadAll(d)
}

// claim holds a device as a kernel that uses it does, until the script ends:
// claim DEVICE.
func claim(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: claim DEVICE")
	}
	f, err := os.OpenFile(args[0], os.O_RDONLY|syscall.O_EXCL, 0)
	ts.Check(err)
	ts.Defer(func() { _ = f.Close() })
}

func TestEraCommandsEndWithTheirContext(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "meta.img")
	packed, err := os.ReadFile(filepath.Join(eraCases, "c01-bs8-64m-snap.clean", "meta.img.zst"))
	if err != nil {
		t.Fatal(err)
	}
	meta, err := unzstd(packed)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image, meta, 0o600); err != nil {
		t.Fatal(err)
	}
	xml := filepath.Join(dir, "era.xml")
	var stdout bytes.Buffer
	if err := (&eraDump{output: xml}).run(context.Background(), image, &stdout, &stdout); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(dir, "target.img")
	if err := os.WriteFile(target, meta, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	stopped := signalError{syscall.SIGINT}
	cancel(stopped)
	for name, work := range map[string]func() error{
		"dump":       func() error { return (&eraDump{output: xml, repair: true}).run(ctx, image, &stdout, &stdout) },
		"invalidate": func() error { return (&eraInvalidate{}).run(ctx, image, &stdout, &stdout) },
		"check":      func() error { return (&eraCheck{}).run(ctx, image, &stdout) },
		"restore":    func() error { return (&eraRestore{input: xml, output: target}).restore(ctx, &stdout, silent{}) },
		"repair":     func() error { return (&eraRestore{input: image, output: target}).repair(ctx, &stdout, &stdout) },
	} {
		if err := work(); !errors.Is(err, stopped) {
			t.Errorf("%s: %v, want %v", name, err, stopped)
		}
	}
	if stdout.Len() > 0 {
		t.Errorf("printed %q", stdout.String())
	}
	if now, err := os.ReadFile(target); err != nil || !bytes.Equal(now, meta) {
		t.Errorf("the target changed (%v)", err)
	}
}

func TestADumpThatFailsLeavesTheOldFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "era.xml")
	if err := os.WriteFile(path, []byte("old"), 0o640); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(path, info, func(w io.Writer) error {
		_, err := io.WriteString(w, strings.Repeat("half ", 100_000))
		return errors.Join(err, era.ErrDamaged)
	}); !errors.Is(err, era.ErrDamaged) {
		t.Fatal(err)
	}
	if err := replaceFile(path, info, func(w io.Writer) error { return nil }); err != nil {
		t.Fatal(err)
	}
	now, err := os.Stat(path)
	if err != nil || now.Size() != 0 || now.Mode() != info.Mode() {
		t.Errorf("%v, %v", now, err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
