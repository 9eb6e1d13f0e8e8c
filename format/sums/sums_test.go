package sums_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"tidemark/format/sums"
)

var id = [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

func tempFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "sums"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestSumsBehaveLikeAnArray(t *testing.T) {
	const blocks = 50
	rapid.Check(t, func(rt *rapid.T) {
		s, err := sums.Create(tempFile(t), id, 8192)
		if err != nil {
			rt.Fatal(err)
		}
		var model [blocks]sums.Sum
		for range rapid.IntRange(0, 20).Draw(rt, "writes") {
			at := rapid.IntRange(0, blocks-1).Draw(rt, "at")
			some := make([]sums.Sum, rapid.IntRange(0, blocks-at).Draw(rt, "n"))
			for i := range some {
				some[i][0] = rapid.Byte().Draw(rt, "sum")
			}
			if err := s.Write(some, int64(at)*8192); err != nil {
				rt.Fatal(err)
			}
			copy(model[at:], some)
		}
		got := make([]sums.Sum, blocks)
		if err := s.Read(got, 0); err != nil {
			rt.Fatal(err)
		}
		if [blocks]sums.Sum(got) != model {
			rt.Fatalf("got %x, want %x", got, model)
		}
	})
}

func TestSumsOfAnotherMirrorAreRefused(t *testing.T) {
	f := tempFile(t)
	if _, err := sums.Open(f, id, 4096); !errors.Is(err, sums.ErrDamaged) {
		t.Errorf("empty file: %v", err)
	}
	if _, err := sums.Create(f, id, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := sums.Open(f, id, 4096); err != nil {
		t.Error(err)
	}
	if _, err := sums.Open(f, [16]byte{}, 4096); !errors.Is(err, sums.ErrNotOurs) {
		t.Errorf("other mirror: %v", err)
	}
	if _, err := sums.Open(f, id, 8192); !errors.Is(err, sums.ErrNotOurs) {
		t.Errorf("other block size: %v", err)
	}
	if _, err := f.WriteAt([]byte{9}, 8); err != nil {
		t.Fatal(err)
	}
	if _, err := sums.Open(f, id, 4096); !errors.Is(err, sums.ErrDamaged) {
		t.Errorf("changed header: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	file := tempFile(f)
	if _, err := sums.Create(file, id, 4096); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(file.Name())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:47])
	f.Fuzz(func(t *testing.T, in []byte) {
		out := tempFile(t)
		if _, err := out.Write(in); err != nil {
			t.Fatal(err)
		}
		s, err := sums.Open(out, id, 4096)
		if err != nil {
			if !errors.Is(err, sums.ErrNotOurs) && !errors.Is(err, sums.ErrDamaged) && !errors.Is(err, sums.ErrNewer) {
				t.Fatalf("error of no class: %v", err)
			}
			return
		}
		if err := s.Read(make([]sums.Sum, 3), 0); err != nil {
			t.Fatal(err)
		}
		again := tempFile(t)
		if _, err := sums.Create(again, id, 4096); err != nil {
			t.Fatal(err)
		}
		if want, err := os.ReadFile(again.Name()); err != nil || !bytes.Equal(in[:48], want[:48]) {
			t.Fatalf("a header that is accepted is not what Create writes: %v", err)
		}
	})
}
