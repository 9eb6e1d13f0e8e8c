package vault

import (
	"errors"
	"testing"
	"time"

	format "tidemark/format/vault"
	"tidemark/vault/store"
)

func TestAPointIsFoundByWhatItIsCalled(t *testing.T) {
	s := store.OnFiles("vault", store.Local(t.TempDir()+"/vault"))
	if err := Init(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	v, err := Open(t.Context(), s, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.FixedZone("", 3600))
	made := map[string]Point{}
	point := func(disk, key string, at time.Time) {
		d, err := v.AddDisk(t.Context(), format.Disk{Name: disk})
		if err != nil {
			t.Fatal(err)
		}
		w, err := v.Begin(t.Context(), From{Disk: d.ID, Size: 4096})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		if made[key], err = w.Commit(format.Point{Moment: at}); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := v.Find(t.Context(), "latest", now); !errors.Is(err, ErrPointName) {
		t.Error(err)
	}
	point("a", "old", now.Add(-72*time.Hour))
	point("a", "new", now.Add(-time.Hour))
	if p, d, err := v.Find(t.Context(), "latest", now); err != nil || p.Name != made["new"].Name || d.Name != "a" {
		t.Errorf("%v, %v, %v", p, d, err)
	}
	point("b", "other", now.Add(-2*time.Hour))
	for text, want := range map[string]string{
		"a@latest": "new", "b@latest": "other", "a@-2d": "old", "a@-72h": "old", "a@-59m": "new", "b@-2h": "other",
		"a@2026-11-28T10:59": "old", "a@2026-11-28T11:00": "new", "a@2026-11-28T10:00Z": "new", "a@2026-11-28": "new",
		"a@2026-11-27": "old", "a@2026-11-28T11:00:00+01:00": "new", made["old"].Name.ID.String()[:20]: "old",
	} {
		if p, _, err := v.Find(t.Context(), text, now); err != nil || p.Name != made[want].Name {
			t.Errorf("%s: %v, %v", text, p.Name, err)
		}
	}
	for i := range 8 { // of one second, in the order of which their ids know nothing
		point("c", "last", now.Add(-time.Hour+time.Duration(i)*time.Millisecond))
	}
	if p, _, err := v.Find(t.Context(), "c@-59m", now); err != nil || p.Name != made["last"].Name {
		t.Errorf("%v, %v", p.Name, err)
	}
	for text, want := range map[string]error{
		"latest": ErrPointName, "": ErrPointName, "x@latest": ErrNoPoint, "a@-1w": ErrNoPoint,
		"a@-2x": ErrPointName, "a@--2h": ErrPointName, "a@yesterday": ErrPointName, "0123456789abcdef0123": ErrNoPoint, "DISK": ErrPointName,
		"a@-99999999999999d": ErrPointName,
	} {
		if p, _, err := v.Find(t.Context(), text, now); !errors.Is(err, want) {
			t.Errorf("%s: %v, %v, want %v", text, p.Name, err, want)
		}
	}
}
