package vault

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"tidemark/extent"
	format "tidemark/format/vault"
	"tidemark/vault/store"
)

// spoilt is a store whose disk cannot read some bytes of the packs.
type spoilt struct {
	store.Store
	bad map[string]extent.Extent // by name of an object
}

func (s spoilt) Get(ctx context.Context, name string, off, n int64, room []byte) ([]byte, error) {
	if bad, ok := s.bad[name]; ok && !bad.Intersect(extent.Extent{Off: off, Len: n}).Empty() {
		return nil, fmt.Errorf("%w: injected", store.ErrUnreadable)
	}
	return s.Store.Get(ctx, name, off, n, room)
}

// A bad sector below the vault costs what lies there: verify tells and goes on, repair keeps all else, and
// the next backup stores anew what was lost.
func TestABadSectorCostsWhatLiesThere(t *testing.T) {
	inner, _ := folder(t)
	s := spoilt{inner, map[string]extent.Extent{}}
	v := open(t, s, Options{})
	content := noise(1, 4<<20)
	p := point(t, v, From{Size: 4 << 20}, map[int64][]byte{0: content})
	pack := files(t, s, format.PacksPrefix)[0]
	s.bad[pack] = extent.Extent{Off: 1<<20 + 512, Len: 512}
	var lost []extent.Extent
	told := 0
	look := func(d Damage) {
		if told++; d.Point != "" {
			lost = append(lost, d.Extent)
		}
	}
	sum, err := open(t, s, Options{}).Verify(t.Context(), VerifyOptions{Data: true, Damage: look})
	gone := extent.NewSet(lost...) // one chunk, or two where the sector lies between
	if err != nil || gone.Empty() || gone.Bytes() > 2*format.ChunkSize || sum.Points != 1 {
		t.Fatalf("%+v, %v; lost %v", sum, err, lost)
	}
	if did, err := v.Repair(t.Context(), RepairOptions{Data: true}); err != nil || did.Rewritten != 1 || did.Lost != 1 || did.Aside != 1 {
		t.Fatalf("%+v, %v", did, err)
	}
	got := make([]byte, 4<<20)
	for at := int64(0); at < p.Size; at += format.ChunkSize {
		e := extent.Extent{Off: at, Len: format.ChunkSize}
		_, err := v.Reader(t.Context(), p).ReadAt(got[at:at+format.ChunkSize], at)
		if gone := !gone.Clip(e).Empty(); (err != nil) != gone || !gone && !bytes.Equal(got[at:e.End()], content[at:e.End()]) {
			t.Errorf("%v: %v", e, err)
		}
	}
	again := point(t, v, From{Size: 4 << 20}, map[int64][]byte{0: content})
	if again.Stored > 3*format.ChunkSize || !bytes.Equal(at(t, v, again, 0, 4<<20), content) {
		t.Errorf("%d bytes stored, or it has others", again.Stored)
	}
	// A table that cannot be read costs the pack.
	pack = files(t, s, format.PacksPrefix)[0]
	b, err := inner.Get(t.Context(), pack, 0, format.MaxPack, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.bad[pack] = extent.Extent{Off: int64(len(b)) - 100, Len: 1}
	if did, err := v.Repair(t.Context(), RepairOptions{}); err != nil || did.Aside != 1 || did.Lost == 0 {
		t.Errorf("%+v, %v", did, err)
	}
	if sum, err := v.Verify(t.Context(), VerifyOptions{}); err != nil || sum.Damages == 0 {
		t.Errorf("%+v, %v", sum, err)
	}
}
