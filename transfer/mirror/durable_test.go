package mirror_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"tidemark/extent"
	"tidemark/format/sidecar"
	"tidemark/internal/faultdisk"
	"tidemark/transfer/mirror"
)

// fillAll brings six blocks of one byte to the mirror.
func fillAll(s *mirror.Store, fill byte) ([]byte, error) {
	data := bytes.Repeat([]byte{fill}, 6*blockSize)
	u, err := s.Begin(int64(len(data)), extent.Set{}, false)
	for off := 0; err == nil && off < len(data); off += blockSize {
		b := data[off : off+blockSize]
		_, err = u.Put([]mirror.Chunk{{Off: int64(off), Data: b, Sums: []sidecar.Sum{sidecar.SumOf(b)}}})
	}
	for _, step := range []func() error{func() error { return u.Seal(func(*sidecar.State) {}) }, u.Publish, u.Finish} {
		if err == nil {
			err = step()
		}
	}
	return data, err
}

// An operation of an update fails, as if the process had died; then the power is cut
// while the next run finishes it.
func TestAKilledUpdateIsFinishedDurably(t *testing.T) {
	torn := 0
	for seed := range uint64(5) {
		for fail, ended := 0, false; !ended; fail++ {
			for cut := 0; ; cut++ {
				w := faultdisk.New(rand.New(rand.NewPCG(seed, uint64(fail<<16|cut))))
				s := mirror.New(w.Target(), w.Folder())
				if err := s.Init(6*blockSize, blockSize, sidecar.Source{Path: "x"}, false); err != nil {
					t.Fatal(err)
				}
				before, err := fillAll(s, 'a')
				if err == nil {
					s, err = mirror.Open(w.Target(), w.Folder())
				}
				if err != nil {
					t.Fatal(err)
				}
				w.FailAfter(fail)
				after, err := fillAll(s, 'b')
				if ended = err == nil; ended {
					break
				}
				w.CutAfter(cut)
				if _, err := mirror.Open(w.Target(), w.Folder()); err == nil {
					break
				}
				w.Restart()
				if _, err := mirror.Open(w.Target(), w.Folder()); err != nil {
					t.Fatal(err)
				}
				if got := w.Content(); !bytes.Equal(got, before) && !bytes.Equal(got, after) {
					torn++
				}
			}
		}
	}
	if torn > 0 {
		t.Errorf("%d targets are neither old nor new", torn)
	}
}
