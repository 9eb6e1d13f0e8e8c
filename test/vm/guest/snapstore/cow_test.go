//go:build linux

package snapstore_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/sysfs"
	"tidemark/test/vm/guest"
	"tidemark/test/vm/guest/instant"
	"tidemark/track"
	"tidemark/track/cow"
	"tidemark/transfer"
)

// snapped makes a snapshot of vg/lv with a store of that size, which is removed at the end.
func snapped(t *testing.T, size string) {
	t.Helper()
	guest.Run(t, "lvcreate", "--quiet", "--snapshot", "--size", size, "--chunksize", "4k", "--name", "snap", "vg/lv")
}

// open opens the tracker of /dev/vg/lv for the time of the test.
func open(t *testing.T, source, store string) (*cow.Tracker, error) {
	t.Helper()
	d, err := block.Open(source, block.Options{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	tr, err := cow.Open(d, store)
	if err == nil {
		t.Cleanup(func() { tr.Close() })
	}
	return tr, err
}

// Every run under load ends with the source as it was at one instant.
func TestMirrorsOfABusyOrigin(t *testing.T) {
	group(t)
	lv := volume(t, "lv")
	guest.Run(t, "mkfs.ext4", "-q", lv)
	at := t.TempDir()
	guest.Run(t, "mount", lv, at)
	snapped(t, "20M")
	c := instant.Copy{Source: lv, Folder: t.TempDir(), Open: func(_ context.Context, d *block.Device) (track.Tracker, error) {
		return cow.Open(d, "/dev/mapper/vg-snap-cow")
	}}
	stop := instant.Load(t, at)
	c.Run(t, "full")
	for range 2 {
		c.Run(t, "incremental")
	}
	stop()
	guest.Run(t, "umount", at)
	if rep := c.Run(t, "incremental"); rep.Read >= 16<<20 {
		t.Errorf("%d bytes were read", rep.Read)
	}
	if rep := c.Run(t, "incremental"); rep.Written != 0 {
		t.Errorf("%d bytes were written although nothing had changed", rep.Written)
	}
}

// A write that is in flight at a mark is in the changes since that mark, although its chunk had an
// exception before.
func TestAWriteInFlightAtAMarkIsNamed(t *testing.T) {
	guest.Modprobe(t, "dm-snapshot", "dm-delay")
	disk := guest.Disk(t, "data")
	slow := guest.Mapper(t, "slow", "0 32768 delay "+disk+" 0 0 "+disk+" 0 700") // ms, of writes alone
	store := guest.Mapper(t, "store", "0 32768 linear "+disk+" 32768")
	d := guest.OpenDirect(t, store)
	if _, err := d.WriteAt(block.AlignedBuffer(4096), 0); err != nil {
		t.Fatal(err)
	}
	d.Close()
	guest.Mapper(t, "snap", "0 32768 snapshot "+slow+" "+store+" P 8")
	origin := guest.Mapper(t, "origin", "0 32768 snapshot-origin "+slow)
	raw := guest.OpenDirect(t, origin)
	buf := block.AlignedBuffer(4096)
	const at = 1 << 20
	write := func() error { _, err := raw.WriteAt(buf, at); return err }
	if err := write(); err != nil {
		t.Fatal(err)
	}
	tr, err := open(t, origin, store)
	if err != nil {
		t.Fatal(err)
	}
	cut := func() track.Mark {
		t.Helper()
		c, err := tr.Cut(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return c.Mark
	}
	named := func(since, until track.Mark) bool {
		t.Helper()
		set, err := tr.Changes(t.Context(), since, until)
		if err != nil {
			t.Fatal(err)
		}
		if !set.Empty() && !set.Equal(extent.NewSet(extent.Extent{Off: at, Len: 4096})) {
			t.Fatalf("changes are %v", set.Extents())
		}
		return !set.Empty()
	}
	quiet := cut()
	if named(quiet, "") || named(quiet, cut()) {
		t.Error("nothing was written, and changes are named")
	}
	before := cut()
	done := make(chan error)
	go func() { done <- write() }()
	for flying := uint64(0); flying == 0; time.Sleep(time.Millisecond) {
		if flying, err = sysfs.WritesInFlight(raw.Identity().Dev().Dir()); err != nil {
			t.Fatal(err)
		}
	}
	during := cut()
	if !named(before, "") {
		t.Error("a write in flight is not in the changes until now")
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	after := cut()
	for name, c := range map[string][2]track.Mark{"before, until now": {before, ""}, "before": {before, after}, "during, until now": {during, ""}, "during": {during, after}} {
		if !named(c[0], c[1]) {
			t.Errorf("a write that was in flight is not in the changes since %s", name)
		}
	}
	if named(after, "") {
		t.Error("nothing was written since, and changes are named")
	}
	if !named(tr.Beginning(), "") {
		t.Error("the beginning knows of no change")
	}
}

// The mark of a snapshot's life before, of another snapshot, or of one that does not hold all
// writes any more, is lost, however few exceptions there are.
func TestAMarkIsOfOneLife(t *testing.T) {
	group(t)
	lv := volume(t, "lv")
	snapped(t, "8M")
	// asked opens the tracker, and closes it when it has been asked.
	asked := func(ask func(*cow.Tracker) error) error {
		t.Helper()
		d, err := block.Open(lv, block.Options{Direct: true})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		tr, err := cow.Open(d, "/dev/vg/snap")
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		return ask(tr)
	}
	var mark track.Mark
	cut := func(tr *cow.Tracker) error {
		c, err := tr.Cut(t.Context())
		mark = c.Mark
		return err
	}
	vouch := func(tr *cow.Tracker) error { return tr.Vouch(t.Context(), mark) }
	if err := errors.Join(asked(cut), asked(vouch)); err != nil {
		t.Errorf("another process cannot ask: %v", err)
	}
	lost := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, track.ErrMarkLost) {
			t.Errorf("%s: %v", what, err)
		}
	}
	guest.Run(t, "lvchange", "--activate", "n", "vg/lv")
	guest.Run(t, "lvchange", "--activate", "y", "vg/lv")
	lost("taken down and activated again", asked(vouch))
	guest.Run(t, "lvremove", "--quiet", "--yes", "vg/snap")
	snapped(t, "8M")
	lost("made anew", asked(vouch))
	if err := asked(func(tr *cow.Tracker) error {
		if err := cut(tr); err != nil {
			return err
		}
		scribble(t, lv, 12<<20)
		_, err := tr.Changes(t.Context(), mark, "")
		lost("overflowed: changes", err)
		lost("overflowed: vouch", vouch(tr))
		lost("overflowed: cut", cut(tr))
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// scribble writes n random bytes to the start of a device.
func scribble(t *testing.T, path string, n int) {
	t.Helper()
	d, err := block.Open(path, block.Options{Write: true, Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	buf := block.AlignedBuffer(n)
	guest.Scramble(buf)
	if _, err := d.WriteAt(buf, 0); err != nil {
		t.Fatal(err)
	}
}

// What cannot be told is refused.
func TestStoresThatDoNotTellAreRefused(t *testing.T) {
	group(t)
	lv := volume(t, "lv")
	other := volume(t, "other")
	snapped(t, "8M")
	file := filepath.Join(t.TempDir(), "store")
	guest.WriteFile(t, file, "")
	for name, c := range map[string]struct {
		source, store string
		want          error
	}{
		"the origin's layer below": {"/dev/mapper/vg-lv-real", "/dev/vg/snap", cow.ErrNotOrigin},
		"another volume":           {other, "/dev/vg/snap", cow.ErrNotOrigin},
		"no store":                 {lv, other, cow.ErrNoSnapshot},
		"a file":                   {lv, file, cow.ErrNoSnapshot},
	} {
		if _, err := open(t, c.source, c.store); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	below := guest.Mapper(t, "below", "0 8192 linear "+other+" 0")
	store := guest.Mapper(t, "store", "0 8192 linear "+other+" 8192")
	fill(t, store, 1)
	guest.Run(t, "dmsetup", "create", "bare", "--table", "0 8192 snapshot "+below+" "+store+" P 8")
	if _, err := open(t, below, store); !errors.Is(err, cow.ErrUnfit) || !strings.Contains(err.Error(), "no write is copied") {
		t.Errorf("an origin that is written past its snapshot: %v", err)
	}
	guest.Run(t, "dmsetup", "remove", "--retry", "bare")
	above := guest.Mapper(t, "above", "0 8192 snapshot-origin "+below)
	for _, c := range []struct{ table, want string }{
		{"snapshot " + below + " " + store + " N 8", "not persistent"},
		{"snapshot-merge " + below + " " + store + " P 8", "the kernel merges it"},
		{"snapshot " + below + " " + store + " P 8 1 discard_zeroes_cow", "discard_zeroes_cow"},
	} {
		fill(t, store, 1)
		guest.Run(t, "dmsetup", "create", "bare", "--table", "0 8192 "+c.table)
		if _, err := open(t, above, store); !errors.Is(err, cow.ErrUnfit) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.table, err)
		}
		guest.Run(t, "dmsetup", "remove", "--retry", "bare")
	}
	scribble(t, lv, 12<<20)
	if _, err := open(t, lv, "/dev/vg/snap"); !errors.Is(err, cow.ErrUnfit) {
		t.Errorf("overflowed: %v", err)
	}
}

// The command mirrors by the store, and prints what it names.
func TestCommandsAskTheStore(t *testing.T) {
	group(t)
	lv := volume(t, "lv")
	snapped(t, "12M")
	image := filepath.Join(t.TempDir(), "lv.img")
	mirror := func(args ...string) (rep transfer.Report) {
		t.Helper()
		out := guest.Run(t, "tidemark", append([]string{"mirror", "--json", "--tracker", "cow:/dev/vg/snap", lv, image}, args...)...)
		if err := json.Unmarshal([]byte(out), &rep); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return rep
	}
	if rep := mirror(); rep.Mode != "full" || rep.Tracker != cow.Kind {
		t.Errorf("%+v", rep)
	}
	scribble(t, lv, 64<<10)
	if rep := mirror(); rep.Mode != "incremental" || rep.Read != 64<<10 {
		t.Errorf("%+v", rep)
	}
	instant.Compare(t, instant.MustRead(t, lv), instant.MustRead(t, image))
	if out := guest.Run(t, "tidemark", "track", "changes", "--tracker", "cow:/dev/mapper/vg-snap-cow", lv); out != "0 65536" {
		t.Errorf("changes: %s", out)
	}
	// A copy that another tool made of the snapshot is gone on with.
	if err := os.RemoveAll(image + ".tidemark"); err != nil {
		t.Fatal(err)
	}
	guest.Run(t, "dd", "if=/dev/vg/snap", "of="+image, "bs=1M")
	if rep := mirror("--adopt"); rep.Mode != "scan" || rep.Written != 64<<10 {
		t.Errorf("%+v", rep)
	}
	instant.Compare(t, instant.MustRead(t, lv), instant.MustRead(t, image))
	out, err := exec.Command("tidemark", "mirror", "--tracker", "cow:/dev/vg/lv", lv, image).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "not the store of a live snapshot") {
		t.Errorf("%v: %s", err, out)
	}
}
