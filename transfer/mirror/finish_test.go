package mirror_test

import (
	"context"
	"math/rand/v2"
	"testing"

	"tidemark/extent"
	"tidemark/format/sidecar"
	"tidemark/internal/faultdisk"
	"tidemark/transfer/mirror"
)

const blockSize = 4096

// store opens a mirror of two blocks, complete after its first copy.
func store(t *testing.T, w *faultdisk.World) *mirror.Store {
	t.Helper()
	s, err := mirror.Open(w.Target(), w.Folder())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if s.Exists() {
		return s
	}
	if err := s.Init(2*blockSize, blockSize, sidecar.Source{Path: "source"}, false); err != nil {
		t.Fatal(err)
	}
	commit(t, put(t, s, 'a'))
	return s
}

// put begins an update that fills the first block.
func put(t *testing.T, s *mirror.Store, fill byte) *mirror.Update {
	t.Helper()
	u, err := s.Begin(2*blockSize, extent.Set{}, false)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, blockSize)
	for i := range data {
		data[i] = fill
	}
	if _, err := u.Put([]mirror.Chunk{{Data: data, Sums: []sidecar.Sum{sidecar.SumOf(data)}}}); err != nil {
		t.Fatal(err)
	}
	return u
}

func commit(t *testing.T, u *mirror.Update) {
	t.Helper()
	if err := u.Seal(func(*sidecar.State) {}); err != nil {
		t.Fatal(err)
	}
	if err := u.Publish(); err != nil {
		t.Fatal(err)
	}
	if err := u.Finish(); err != nil {
		t.Fatal(err)
	}
}

func TestATargetWrittenToBeforeItIsFinishedIsNotTrusted(t *testing.T) {
	w := faultdisk.New(rand.New(rand.NewPCG(1, 1)))
	s := store(t, w)
	commit(t, put(t, s, 'b'))
	if why := store(t, w).Suspect(); why != "" {
		t.Fatalf("our own writes look like those of someone else: %s", why)
	}
	u := put(t, s, 'c')
	if err := u.Seal(func(*sidecar.State) {}); err != nil {
		t.Fatal(err)
	}
	if err := u.Publish(); err != nil {
		t.Fatal(err)
	}
	w.Scribble(blockSize+7, []byte("graffiti"))
	if err := u.Finish(); err != nil {
		t.Fatal(err)
	}
	again := store(t, w)
	if again.Suspect() == "" {
		t.Error("what someone else wrote before the update was applied is taken for ours")
	}
	bad, err := again.Check(context.Background(), nil)
	if want := (extent.Extent{Off: blockSize, Len: blockSize}); err != nil || bad.Bytes() != want.Len || !bad.Covers(want) {
		t.Errorf("bad %v, %v", bad.Extents(), err)
	}
}
