package sidecar_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tidemark/extent"
	"tidemark/format/sidecar"
)

var id = sidecar.ID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

func state(update uint64, size int64) sidecar.State {
	return sidecar.State{
		ID: id, Update: update, Size: size, BlockSize: 4096, Complete: true,
		Source: sidecar.Source{Path: "/dev/loop0", Stable: "loop:/images/a.img"},
		Mark:   "bpf:0123456789abcdef:7",
		Time:   time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC),
		Runs:   []sidecar.Run{{Tracker: "bpf", View: "freeze", Changed: 4096, Outcome: "ok"}},
	}
}

func sample(t testing.TB) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := sidecar.NewJournalWriter(&buf, sidecar.JournalHeader{ID: id, BlockSize: 4096, Update: 3, Size: 40000})
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("tide"), 2048)
	sums := []sidecar.Sum{sidecar.SumOf(data[:4096]), sidecar.SumOf(data[4096:])}
	tail := []byte("the short last block")
	tail = append(tail, make([]byte, 40000-36864-len(tail))...)
	for _, err := range []error{
		w.Data(8192, data, sums),
		w.Zero(extent.Extent{Off: 16384, Len: 8192}),
		w.Data(36864, tail, []sidecar.Sum{sidecar.SumOf(tail)}),
		w.Done(state(3, 40000)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return buf.Bytes()
}

// readAll reads a journal to its end and returns it written anew.
func readAll(b []byte) ([]byte, error) {
	r, err := sidecar.NewJournalReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w, err := sidecar.NewJournalWriter(&out, r.JournalHeader)
	if err != nil {
		return nil, err
	}
	for {
		rec, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if rec.Data == nil {
			err = w.Zero(rec.Extent)
		} else {
			err = w.Data(rec.Off, rec.Data, rec.Sums)
		}
		if err != nil {
			return nil, err
		}
	}
	err = w.Done(r.State())
	return out.Bytes(), err
}

func TestAJournalReadsBackAsWritten(t *testing.T) {
	b := sample(t)
	r, err := sidecar.NewJournalReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for {
		rec, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%v data=%v sums=%d", rec.Extent, rec.Data != nil, len(rec.Sums)))
	}
	want := []string{"8192+8192 data=true sums=2", "16384+8192 data=false sums=0", "36864+3136 data=true sums=1"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	if r.State().Mark != "bpf:0123456789abcdef:7" || r.State().Runs[0].Changed != 4096 {
		t.Fatalf("state: %+v", r.State())
	}
}

func TestAJournalCutAnywhereIsNotCommitted(t *testing.T) {
	b := sample(t)
	for n := range b {
		if _, err := readAll(b[:n]); !errors.Is(err, sidecar.ErrIncomplete) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(b), err)
		}
	}
}

func TestAJournalWithAnyByteChangedIsRefused(t *testing.T) {
	b := sample(t)
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 0x40
		if _, err := readAll(bad); err == nil {
			t.Fatalf("byte %d changed: no error", i)
		}
	}
	if _, err := readAll(append(bytes.Clone(b), 0)); !errors.Is(err, sidecar.ErrDamaged) {
		t.Fatalf("a byte too many: %v", err)
	}
}

func TestAJournalWithARecordLeftOutIsRefused(t *testing.T) {
	b := sample(t)
	second := 64 + 40 + 32 + 8192
	if _, err := readAll(append(bytes.Clone(b[:second]), b[second+40:]...)); !errors.Is(err, sidecar.ErrDamaged) {
		t.Fatal(err)
	}
}

func TestWhatDoesNotFitIsNotWritten(t *testing.T) {
	w, err := sidecar.NewJournalWriter(io.Discard, sidecar.JournalHeader{ID: id, BlockSize: 4096, Size: 40000})
	if err != nil {
		t.Fatal(err)
	}
	block := bytes.Repeat([]byte{1}, 4096)
	for name, err := range map[string]error{
		"behind the end":  w.Data(40960, block, make([]sidecar.Sum, 1)),
		"not on a block":  w.Data(100, block, make([]sidecar.Sum, 1)),
		"half a block":    w.Data(0, block[:100], make([]sidecar.Sum, 1)),
		"no checksum":     w.Data(0, block, nil),
		"negative zeros":  w.Zero(extent.Extent{Off: -4096, Len: 4096}),
		"no zeros at all": w.Zero(extent.Extent{Off: 4096}),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestStatesAreCheckedBeforeTheyAreTrusted(t *testing.T) {
	good, err := state(3, 40000).Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sidecar.DecodeState(good); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := sidecar.DecodeState(bad); err == nil {
			t.Fatalf("byte %d changed: no error", i)
		}
		if _, err := sidecar.DecodeState(good[:i]); err == nil {
			t.Fatalf("cut to %d bytes: no error", i)
		}
	}
	for _, change := range []func(*sidecar.State){
		func(s *sidecar.State) { s.Size = -1 },
		func(s *sidecar.State) { s.Copied = s.Size + 1 },
		func(s *sidecar.State) { s.BlockSize = 5000 },
		func(s *sidecar.State) { s.BlockSize = 1 << 40 },
		func(s *sidecar.State) { s.Runs = make([]sidecar.Run, sidecar.MaxRuns+1) },
	} {
		s := state(1, 40000)
		change(&s)
		b, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sidecar.DecodeState(b); !errors.Is(err, sidecar.ErrDamaged) {
			t.Errorf("%+v: %v", s, err)
		}
	}
}

func TestTheHistoryIsBounded(t *testing.T) {
	var s sidecar.State
	for i := range 3 * sidecar.MaxRuns {
		s.AddRun(sidecar.Run{Changed: int64(i)})
	}
	if len(s.Runs) != sidecar.MaxRuns || s.Runs[len(s.Runs)-1].Changed != 3*sidecar.MaxRuns-1 {
		t.Fatalf("%d runs, the last %+v", len(s.Runs), s.Runs[len(s.Runs)-1])
	}
}

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
		s, err := sidecar.CreateSums(tempFile(t), id, 8192)
		if err != nil {
			rt.Fatal(err)
		}
		var model [blocks]sidecar.Sum
		for range rapid.IntRange(0, 20).Draw(rt, "writes") {
			at := rapid.IntRange(0, blocks-1).Draw(rt, "at")
			sums := make([]sidecar.Sum, rapid.IntRange(0, blocks-at).Draw(rt, "n"))
			for i := range sums {
				sums[i][0] = rapid.Byte().Draw(rt, "sum")
			}
			if err := s.Write(sums, int64(at)*8192); err != nil {
				rt.Fatal(err)
			}
			copy(model[at:], sums)
		}
		got := make([]sidecar.Sum, blocks)
		if err := s.Read(got, 0); err != nil {
			rt.Fatal(err)
		}
		if [blocks]sidecar.Sum(got) != model {
			rt.Fatalf("got %x, want %x", got, model)
		}
	})
}

func TestSumsOfAnotherMirrorAreRefused(t *testing.T) {
	f := tempFile(t)
	if _, err := sidecar.OpenSums(f, id, 4096); !errors.Is(err, sidecar.ErrDamaged) {
		t.Errorf("empty file: %v", err)
	}
	if _, err := sidecar.CreateSums(f, id, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := sidecar.OpenSums(f, id, 4096); err != nil {
		t.Error(err)
	}
	if _, err := sidecar.OpenSums(f, sidecar.ID{}, 4096); !errors.Is(err, sidecar.ErrNotOurs) {
		t.Errorf("other mirror: %v", err)
	}
	if _, err := sidecar.OpenSums(f, id, 8192); !errors.Is(err, sidecar.ErrNotOurs) {
		t.Errorf("other block size: %v", err)
	}
	if _, err := f.WriteAt([]byte{9}, 8); err != nil {
		t.Fatal(err)
	}
	if _, err := sidecar.OpenSums(f, id, 4096); !errors.Is(err, sidecar.ErrDamaged) {
		t.Errorf("changed header: %v", err)
	}
}

func FuzzJournal(f *testing.F) {
	b := sample(f)
	f.Add(b)
	f.Add(b[:64])
	f.Fuzz(func(t *testing.T, b []byte) {
		once, err := readAll(b)
		if err != nil {
			return
		}
		// The JSON of the state may have been spelt in another way, but only once.
		twice, err := readAll(once)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("a journal that parses does not read back as written: %v", err)
		}
	})
}

func FuzzState(f *testing.F) {
	b, err := state(1, 40000).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := sidecar.DecodeState(b)
		if err != nil {
			return
		}
		once, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		s, err = sidecar.DecodeState(once)
		if err != nil {
			t.Fatalf("a state that parses does not parse again: %v", err)
		}
		if twice, err := s.Encode(); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("a state does not read back as written: %v", err)
		}
	})
}
