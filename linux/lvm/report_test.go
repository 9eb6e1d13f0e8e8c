package lvm

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// report is one that lvs of lvm2 2.03.16 has made: of the volumes of a group with two volumes and
// their snapshots, and a thin pool with two volumes.
func report(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// volumes are those of a report by name.
func volumes(t testing.TB, name string) map[string]Volume {
	t.Helper()
	all, err := parse(report(t, name))
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]Volume{}
	for _, v := range all {
		byName[v.Name] = v
	}
	if len(byName) != 11 {
		t.Fatalf("%d volumes, want 11: %v", len(byName), byName)
	}
	return byName
}

func TestReportsOfLvsAreUnderstood(t *testing.T) {
	of := volumes(t, "volumes")
	snap := of["snap"]
	if !snap.Snapshot() || snap.Thin() || snap.Origin != "lv" || snap.ChunkSize != 4096 || snap.Size != 8<<20 || !snap.Active || snap.Open || snap.Path != "/dev/vg/snap" || snap.Merging || snap.Invalid {
		t.Errorf("snapshot: %+v", snap)
	}
	if uuid := of["lv"].DMUUID("real"); uuid != "LVM-1Ce7jYQApzUkXUqVa0pofAM7smdsJ7ApJ2geemR4VzL5514LPh3a1gCKM1Myu7rb-real" {
		t.Errorf("UUID of the origin's layer: %s", uuid)
	}
	thin := of["thinsnap"]
	if !thin.Thin() || thin.Snapshot() || thin.ThinID != 2 || thin.Pool != "pool" || thin.Origin != "thin" {
		t.Errorf("thin snapshot: %+v", thin)
	}
	pool := of["pool"]
	if !pool.IsPool() || pool.Thin() || pool.DataLV != "pool_tdata" || pool.MetadataLV != "pool_tmeta" || pool.ChunkSize != 64<<10 || of["pool_tmeta"].Path != "" {
		t.Errorf("pool: %+v", pool)
	}
	if m := volumes(t, "merging"); !m["snap"].Merging || !m["lv"].Open || m["snap2"].Merging {
		t.Errorf("a snapshot that is to be merged: %+v %+v", m["snap"], m["lv"])
	}
}

func TestReportsThatAreNotUnderstoodAreRefused(t *testing.T) {
	good := report(t, "volumes")
	for _, c := range []struct{ old, text string }{
		{`"report"`, `"rapport"`},
		{`"lv_size":"16777216"`, `"lv_size":"16,00m"`},
		{`"lv_size":"16777216"`, `"lv_size":"-1"`},
		{`"lv_active_locally":"1"`, `"lv_active_locally":"active"`},
		{`"lv_merging":"0", `, ``},
		{`"lv_uuid"`, `"lv_id"`},
		{`"thin_id":"2"`, `"thin_id":"16777216"`},
		{"{", ""},
	} {
		bad := bytes.Replace(good, []byte(c.old), []byte(c.text), 1)
		if bytes.Equal(bad, good) {
			t.Fatalf("the report has no %s", c.old)
		}
		if all, err := parse(bad); err == nil || !strings.Contains(err.Error(), "not understood") {
			t.Errorf("with %s for %s: %d volumes, %v", c.text, c.old, len(all), err)
		}
	}
}

func TestAStoreIsNotAppliedWhereItCouldDoHarm(t *testing.T) {
	of, merging := volumes(t, "volumes"), volumes(t, "merging")
	lv, snap := of["lv"], of["snap"]
	with := func(v Volume, change func(*Volume)) Volume {
		change(&v)
		return v
	}
	for name, c := range map[string]struct {
		origin, snapshot Volume
		others           []Volume
		want             string
	}{
		"as it should be":     {lv, snap, nil, ""},
		"thin":                {of["thin"], of["thinsnap"], nil, "lvconvert --merge vg/thinsnap"},
		"no snapshot":         {lv, of["lv2"], nil, "no snapshot"},
		"of another volume":   {lv, of["snap2"], nil, "a snapshot of vg/lv3"},
		"LVM merges":          {merging["lv"], merging["snap"], nil, "LVM itself merges"},
		"overflowed":          {lv, with(snap, func(v *Volume) { v.Invalid = true }), nil, "lvremove vg/snap"},
		"suspended":           {with(lv, func(v *Volume) { v.Suspended = true }), snap, nil, "dmsetup resume"},
		"read-only":           {with(lv, func(v *Volume) { v.ReadOnly = true }), snap, nil, "lvchange --permission rw vg/lv"},
		"a second snapshot":   {lv, snap, []Volume{with(of["snap2"], func(v *Volume) { v.Origin = "lv" })}, "vg/snap2 is a snapshot of it too"},
		"snapshots elsewhere": {lv, snap, []Volume{of["snap2"]}, ""},
	} {
		err := fit(c.origin, c.snapshot, append(c.others, c.origin, c.snapshot))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestWithoutLVMItIsSaidWhatToInstall(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := Find(t.Context(), "vg/lv"); !errors.Is(err, ErrMissing) {
		t.Error(err)
	}
	for _, bad := range []string{"", "vg", "vg/", "/lv", "vg/lv/x", "--help/x"} {
		if _, err := Find(t.Context(), bad); err == nil || errors.Is(err, ErrMissing) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
