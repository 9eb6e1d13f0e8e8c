package bpf

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"tidemark/extent"
)

// mount returns a bpffs of the test's own.
func mount(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root")
	}
	fs := filepath.Join(t.TempDir(), "bpf")
	if err := os.Mkdir(fs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := MountFS(fs); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(fs, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return fs
}

// objects calls f with each variant installed, which all work on this kernel.
func objects(t *testing.T, f func(t *testing.T, fac *Facility)) {
	t.Helper()
	for name, began := range map[string]string{"bits": progBegan, "bytes": beganPlain, "preempted": beganCopies} {
		t.Run(name, func(t *testing.T) { f(t, installed(t, began)) })
	}
}

func installed(t testing.TB, began string) *Facility {
	t.Helper()
	f, err := install(filepath.Join(mount(t), "tidemark", "v1"), began, btf.NewCache())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// installedPins is how many pins there are without bio-based disks: maps, programs with their links, and
// the one that is called.
func installedPins(f *Facility) int { return len(mapNames(f.began)) + 2*len(reqProgs(f.began)) + 1 }

// newBitmap returns an empty bitmap that the test need not close.
func emptyBitmap(t testing.TB, f *Facility, blocks uint64) *Bitmap {
	t.Helper()
	b, err := f.NewBitmap(blocks)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func TestThisKernelHasAllThatIsNeeded(t *testing.T) {
	if err := Plain(); err != nil {
		t.Errorf("a block would take a byte: %v", err)
	}
	for _, f := range Probe() {
		if f.Err != nil {
			t.Errorf("%s (%s): %v", f.Name, f.Since, f.Err)
		}
	}
}

func TestMountingTwiceMountsOnce(t *testing.T) {
	fs := mount(t)
	if err := MountFS(fs); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(fs, 0); err != nil {
		t.Fatal(err)
	}
	if is, err := IsFS(fs); is || err != nil {
		t.Errorf("still mounted: %v %v", is, err)
	}
	if err := MountFS(fs); err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsInstalledIsFoundAgainAndRemoved(t *testing.T) {
	objects(t, whatIsInstalledIsFoundAgainAndRemoved)
}

func whatIsInstalledIsFoundAgainAndRemoved(t *testing.T, f *Facility) {
	again, err := Load(f.Dir())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := errors.Join(f.Check(false, false), again.Check(false, false)); err != nil {
		t.Error(err)
	}
	if err := Remove(f.Dir()); err != nil {
		t.Fatal(err)
	}
	if err := f.Check(false, false); !errors.Is(err, ErrBroken) {
		t.Errorf("removed, but Check says %v", err)
	}
	if _, err := Load(f.Dir()); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("removed, but Load says %v", err)
	}
}

func TestHalfAnInstallationIsBroken(t *testing.T) { objects(t, halfAnInstallationIsBroken) }

func halfAnInstallationIsBroken(t *testing.T, f *Facility) {
	entries, err := os.ReadDir(f.Dir())
	if err != nil {
		t.Fatal(err)
	}
	if want := installedPins(f); len(entries) != want {
		t.Fatalf("%d pins, want %d", len(entries), want)
	}
	asWithBits := append(mapNames(progBegan), reqProgs(progBegan)...)
	for _, name := range reqProgs(progBegan) {
		asWithBits = append(asWithBits, pinnedLink+name)
	}
	for _, e := range entries {
		if f.began != progBegan && slices.Contains(asWithBits, e.Name()) {
			continue
		}
		if err := Remove(f.Dir()); err != nil {
			t.Fatal(err)
		}
		whole, err := install(f.Dir(), f.began, f.types)
		if err != nil {
			t.Fatal(err)
		}
		whole.Close()
		if err := os.Remove(filepath.Join(f.Dir(), e.Name())); err != nil {
			t.Fatal(err)
		}
		if half, err := Load(f.Dir()); !errors.Is(err, ErrBroken) {
			if err == nil {
				half.Close()
			}
			t.Errorf("without %s: Load says %v", e.Name(), err)
		}
	}
}

func TestDisksComeAndGo(t *testing.T) { objects(t, disksComeAndGo) }

func disksComeAndGo(t *testing.T, f *Facility) {
	b := emptyBitmap(t, f, 100)
	dev := DevT(4000, 7) // no such disk
	d := Disk{Dev: dev, DiskSeq: 1, Sectors: 800, Slot: 5, Shift: 3, Flags: DiskBio}
	if err := f.Put(d, b); err != nil {
		t.Fatal(err)
	}
	if err := f.Put(d, b); err == nil {
		t.Error("a disk was added twice")
	}
	if err := f.Check(true, false); err != nil {
		t.Error(err)
	}
	if got, known, err := f.Get(dev); got != d || !known || err != nil {
		t.Errorf("got %v %v %v", got, known, err)
	}
	if id, known, err := f.Active(5); id != b.ID() || !known || err != nil {
		t.Errorf("active %v %v %v, want %v", id, known, err, b.ID())
	}
	addr := uint64(0xffff000000001000)
	if err := f.maps[mapFlights].Put(addr, flight{Slot: 5}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.Drop(dev); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.maps[mapFlights].Lookup(addr, &flight{}); err == nil {
		t.Error("a bio in flight outlived its disk")
	}
	if err := f.Check(true, false); !errors.Is(err, ErrBroken) {
		t.Errorf("the programs for bio-based disks are still attached: %v", err)
	}
	if _, known, err := f.Active(5); known || err != nil {
		t.Errorf("the slot is not empty: %v %v", known, err)
	}
}

// Of a Put that fails, or is killed, at any step nothing is left.
func TestNothingIsLeftOfADiskThatWasNotAdded(t *testing.T) {
	objects(t, nothingIsLeftOfADiskThatWasNotAdded)
}

func nothingIsLeftOfADiskThatWasNotAdded(t *testing.T, f *Facility) {
	b := emptyBitmap(t, f, 100)
	other := Disk{Dev: DevT(4000, 6), Sectors: 800, Slot: 4}
	d := Disk{Dev: DevT(4000, 7), Sectors: 800, Slot: 5, Shift: 3, Flags: DiskBio}
	if err := f.Put(other, emptyBitmap(t, f, 100)); err != nil {
		t.Fatal(err)
	}
	wantNothing := func(what string) {
		t.Helper()
		entries, err := os.ReadDir(f.Dir())
		if err != nil || len(entries) != installedPins(f) {
			t.Errorf("%s: pinned: %v, %v", what, entries, err)
		}
		if _, active, err := f.Active(d.Slot); active || err != nil {
			t.Errorf("%s: the slot is not empty: %v", what, err)
		}
		if disks, err := f.Disks(); len(disks) != 1 || err != nil {
			t.Errorf("%s: disks: %v, %v", what, disks, err)
		}
		if _, active, err := f.Active(other.Slot); !active || err != nil {
			t.Errorf("%s: the slot of another disk is empty: %v", what, err)
		}
	}
	// What is in the way of one pin fails the step half-way.
	way := filepath.Join(f.Dir(), progBioDone)
	if err := os.MkdirAll(filepath.Join(way, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.Put(d, b); err == nil {
		t.Fatal("nothing was in the way")
	}
	if err := errors.Join(os.RemoveAll(way), f.Sweep()); err != nil {
		t.Fatal(err)
	}
	wantNothing("failed")
	// All steps but the last two: from then on there is an entry, which Drop finds.
	for n := range len(f.putting(0, d, b)) - 1 {
		at, err := f.freePlace(d.Dev)
		if err != nil {
			t.Fatal(err)
		}
		if err := inOrder(f.putting(at, d, b)[:n]); err != nil {
			t.Fatal(err)
		}
		if err := f.Sweep(); err != nil {
			t.Fatal(err)
		}
		wantNothing(fmt.Sprintf("killed after %d steps", n))
	}
}

// While it is not certain that each issue is marked in the active bitmap, no completion
// may be left out: from the step that exchanges it, or has the disk found, to the last.
func TestSinceWhenABitmapIsActiveIsNeverTooEarly(t *testing.T) {
	objects(t, sinceWhenABitmapIsActiveIsNeverTooEarly)
}

func sinceWhenABitmapIsActiveIsNeverTooEarly(t *testing.T, f *Facility) {
	b := emptyBitmap(t, f, 100)
	const slot = 5
	since := func() (at uint64) {
		if err := f.maps[mapSince].Lookup(uint32(slot), &at); err != nil {
			t.Fatal(err)
		}
		return at
	}
	if err := f.begun(slot); err != nil { // as another disk has left it
		t.Fatal(err)
	}
	d := Disk{Dev: DevT(4000, 7), Sectors: 800, Slot: slot}
	for name, c := range map[string]struct {
		steps     []func() error
		exchanges int // the step
	}{
		"put":  {f.putting(0, d, b), 3},
		"swap": {f.swapping(slot, b), 1},
	} {
		for i, step := range c.steps {
			if i >= c.exchanges && since() != sinceNever {
				t.Errorf("%s: before step %d completions may be left out since %d", name, i, since())
			}
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
		if at, now := since(), kernelTime(t); at > now+1e6 || at+1e9 < now {
			t.Errorf("%s: active since %d, now is %d", name, at, now)
		}
	}
}

// What is skipped of a program may be unmarked, unless another copy of it has caught all that.
func TestWhatASkippedProgramLoses(t *testing.T) {
	for _, c := range []struct {
		bio                              bool
		issued, queued, remapped, caught uint64 // caught: of what was issued, or queued
		want                             uint64
	}{
		{false, 0, 7, 0, 0, 0},
		{false, 7, 0, 0, 0, 7},
		{false, 7, 0, 0, 6, 7},
		{false, 7, 0, 0, 7, 0},
		{true, 7, 7, 0, 7, 0},
		{true, 0, 7, 1, 7, 8},
		{true, 0, 7, 1, 6, 8},
	} {
		n := counts{
			skipped: map[string]uint64{progIssue: c.issued, progQueue: c.queued, progOwnMap: c.remapped, progReqDone: 3, progBioDone: 2, progRemap: 1},
			caught:  map[string]uint64{progIssue: c.caught, progQueue: c.caught},
		}
		if got := n.misses(c.bio); got.Queue != c.want || got.Complete != 3 {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}

// Of the copies of a program, each marks what those before it were skipped for, and counts it; no
// two of them mark the same.
func TestEachCopyCatchesWhatTheOthersWereSkippedFor(t *testing.T) {
	for without, want := range map[string]uint64{
		"": 0, copyFirst: 1, copyFirst + copyAgain: 1, copyFirst + copyAgain + copyThird + copyFourth: 1,
		copyLast: 0, copyAgain: 0, copyThird + copyFourth: 0,
	} {
		t.Run("without "+without, func(t *testing.T) {
			f := installed(t, beganCopies)
			dev, d := smallLoop(t)
			b := emptyBitmap(t, f, 256)
			if err := f.Put(d, b); err != nil {
				t.Fatal(err)
			}
			for _, which := range []string{copyFirst, copyAgain, copyThird, copyFourth, copyLast} {
				if strings.Contains(without, which) {
					if err := detach(f.Dir(), progIssue+which); err != nil {
						t.Fatal(err)
					}
				}
			}
			disk, err := os.OpenFile(dev, os.O_RDWR|unix.O_DIRECT, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer disk.Close()
			before := afterDetaching(t, f, disk, want != 0)
			const writes = 5
			for range writes { // of which each may be the same request
				writePages(t, disk, 16<<12)
			}
			got, err := b.Set(4096, 1<<20)
			if want := extent.NewSet(extent.Extent{Off: 16 << 12, Len: 8192}); err != nil || !got.Equal(want) || b.Lost() != 0 {
				t.Fatalf("marked %v, lost %v, %v; want %v", got, b.Lost(), err, want)
			}
			// Reads and the writes of others on this machine count as well.
			after, err := f.counts()
			n := after.caught[progIssue] - before.caught[progIssue]
			if err != nil || n < want*writes || want == 0 && n != after.skipped[progIssue]-before.skipped[progIssue] {
				t.Errorf("caught %d, want %d a write, %v", n, want, err)
			}
		})
	}
}

// afterDetaching writes until what was detached is: the kernel takes its time. It returns the
// counters of then.
func afterDetaching(t *testing.T, f *Facility, disk *os.File, catches bool) counts {
	t.Helper()
	for first := uint64(0); ; {
		writePages(t, disk, 16<<12)
		c, err := f.counts()
		if err != nil {
			t.Fatal(err)
		}
		if n := c.caught[progIssue]; !catches || first != 0 && n > first {
			return c
		} else {
			first = n
		}
	}
}

// smallLoop makes a loop device of 1 MiB, and its entry.
func smallLoop(t testing.TB) (string, Disk) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 1<<20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", dev).Run() })
	var st unix.Stat_t
	if err := unix.Stat(dev, &st); err != nil {
		t.Fatal(err)
	}
	seq, err := os.ReadFile("/sys/block/" + filepath.Base(dev) + "/diskseq")
	if err != nil {
		t.Fatal(err)
	}
	d := Disk{Dev: DevT(unix.Major(st.Rdev), unix.Minor(st.Rdev)), Sectors: 2048, Slot: 3, Shift: 3}
	if d.DiskSeq, err = strconv.ParseUint(strings.TrimSpace(string(seq)), 10, 64); err != nil {
		t.Fatal(err)
	}
	return dev, d
}

// writePages writes two pages at an offset, past the page cache.
func writePages(t testing.TB, disk *os.File, off int64) {
	t.Helper()
	data, err := unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(data)
	if _, err := disk.WriteAt(data, off); err != nil {
		t.Fatal(err)
	}
}

// kernelTime is the clock that requests are stamped with, in nanoseconds.
func kernelTime(t *testing.T) uint64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return uint64(ts.Nano())
}

func TestBitmapKeepsItsHeaderAndReadsItsBits(t *testing.T) {
	objects(t, bitmapKeepsItsHeaderAndReadsItsBits)
}

func bitmapKeepsItsHeaderAndReadsItsBits(t *testing.T, f *Facility) {
	per := perPage(f.plain)
	blocks := 5 * windowSize * per / 2 // two windows and a half
	b := emptyBitmap(t, f, blocks)
	h := Header{1, 2, 3, 4, 5, 6, 7, 8, true, false, true, [4]uint64{9, 10, 11, 12}}
	b.SetHeader(h)
	path := filepath.Join(f.Dir(), "b")
	if err := b.Pin(path); err != nil {
		t.Fatal(err)
	}
	c, err := OpenBitmap(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Header() != h || c.ID() != b.ID() {
		t.Errorf("header %v, want %v", c.Header(), h)
	}
	size := int64(blocks)*4096 - 100
	var want []extent.Extent
	for _, block := range []uint64{0, 63, 64, per - 1, per, windowSize * per, blocks - 1} {
		setBit(t, b, block)
		want = append(want, extent.Extent{Off: int64(block) * 4096, Len: 4096})
	}
	set, err := c.Set(4096, size)
	if err != nil {
		t.Fatal(err)
	}
	if !set.Equal(extent.NewSet(want...).Clip(extent.Extent{Len: size})) {
		t.Errorf("read %v", set.Extents())
	}
}

// setBit does what the programs do.
func setBit(t *testing.T, b *Bitmap, block uint64) {
	t.Helper()
	per := perPage(b.plain())
	page := make([]byte, pageSize)
	key := uint32(1 + block/per)
	if err := b.m.Lookup(key, &page); err != nil {
		t.Fatal(err)
	}
	if b.plain() {
		page[block%per] = 1
		b.page[summaryOff+block/per/8] = 1
	} else {
		page[block%per/8] |= 1 << (block % 8)
		b.page[summaryOff+block/per/8] |= 1 << (block / per % 8)
	}
	if err := b.m.Put(key, page); err != nil {
		t.Fatal(err)
	}
}

func TestTableOfDisksFindsWhatCollides(t *testing.T) { objects(t, tableOfDisksFindsWhatCollides) }

func tableOfDisksFindsWhatCollides(t *testing.T, f *Facility) {
	b := emptyBitmap(t, f, 1)
	devs := map[uint32]uint32{}
	for round := range 2 { // the second finds the places of the first used before
		for slot := range uint32(48) {
			dev := DevT(7, slot) // as loop devices
			if slot%2 == 0 {
				dev = DevT(8+slot/32, 16*slot+uint32(round)) // as SCSI disks
			}
			if err := f.Put(Disk{Dev: dev, Slot: slot, Sectors: uint64(dev)}, b); err != nil {
				t.Fatal(err)
			}
			devs[dev] = slot
		}
		all, err := f.Disks()
		if err != nil || len(all) != len(devs) {
			t.Fatalf("%d disks, want %d (%v)", len(all), len(devs), err)
		}
		for dev, slot := range devs {
			if d, known, err := f.Get(dev); d.Slot != slot || !known || err != nil {
				t.Errorf("disk %#x: %v %v %v", dev, d, known, err)
			}
			if err := f.Drop(dev); err != nil {
				t.Fatal(err)
			}
			delete(devs, dev)
		}
	}
}
