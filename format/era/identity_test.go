package era

import (
	"bytes"
	"errors"
	"testing"
)

// image is metadata in memory.
type image []byte

func (m image) ReadAt(p []byte, off int64) (int, error)  { return copy(p, m[off:]), nil }
func (m image) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

func fresh(t *testing.T, id Identity) image {
	t.Helper()
	m := make(image, 64*BlockSize)
	b := NewBuilder(m, int64(len(m)))
	b.Identify(id)
	for _, step := range []func() error{
		func() error { return b.Begin(Header{BlockSectors: 64, NrBlocks: 1000}) },
		b.BeginArray,
		func() error { return b.Eras(make([]Era, 1000)) },
		b.EndArray, b.End,
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestIdentityIsPartOfTheSuperblock(t *testing.T) {
	id := Identity{1, 2, 3, 15: 255}
	m := fresh(t, id)
	md, err := Open(m, int64(len(m)))
	if err != nil {
		t.Fatal(err)
	}
	if got := md.Superblock().Identity; got != id {
		t.Errorf("identity %s, want %s", got, id)
	}
	if _, err := Check(m, int64(len(m)), func(f *Fault) { t.Error(f) }); err != nil {
		t.Error(err)
	}
	m[identityID] ^= 1
	if _, err := Open(m, int64(len(m))); !errors.Is(err, ErrDamaged) {
		t.Errorf("a changed identity: %v, want %v", err, ErrDamaged)
	}
}

func TestStampChangesTheIdentityOnly(t *testing.T) {
	id := Identity{7}
	with, without := fresh(t, id), fresh(t, Identity{})
	stamped := bytes.Clone(without)
	if err := Stamp(image(stamped), int64(len(stamped)), id); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(stamped, with) {
		t.Error("stamped metadata is not what a builder with the identity writes")
	}
	if err := Stamp(image(stamped), int64(len(stamped)), Identity{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(stamped, without) {
		t.Error("the identity was not taken away")
	}
	zero := make(image, 64*BlockSize)
	if err := Stamp(zero, int64(len(zero)), id); !errors.Is(err, ErrNotEra) {
		t.Errorf("no metadata: %v, want %v", err, ErrNotEra)
	}
}

func TestIdentityIsReadAsItIsWritten(t *testing.T) {
	for _, want := range []Identity{{}, {0xab, 15: 1}} {
		text, err := want.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var got Identity
		if err := got.UnmarshalText(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	var i Identity
	for _, bad := range []string{"ab", "zz000000000000000000000000000000"} {
		if err := i.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
