package bpf_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/track"
	"tidemark/track/bpf"
	"tidemark/witness"
)

// machine is a disk with an ext4 and an empty partition's worth of space behind it, over boots.
// A boot is simulated by a run folder and a bpffs of its own; the rig has real ones.
type machine struct {
	t         *testing.T
	dev, file string
	at        bpf.Place
	opts      bpf.Options
}

const (
	diskSize = 64 << 20
	fsSize   = 48 << 20 // the rest is silent
)

func newMachine(t *testing.T) *machine {
	t.Helper()
	if testing.Short() {
		t.Skip("nothing of a boot runs at once, which the race detector is for: make test-plain runs it")
	}
	m := &machine{t: t, file: sparse(t, diskSize), at: bpf.Place{Dir: filepath.Join(t.TempDir(), "state"), Name: "disk"}}
	m.dev = loop(t, m.file)
	run(t, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", m.dev, "48M")
	m.opts = places(t)
	return m
}

func (m *machine) source() *block.Device {
	m.t.Helper()
	d, err := block.Open(m.dev, block.Options{})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { d.Close() })
	return d
}

// boot is the beginning of a boot.
func (m *machine) boot() bpf.Resumed {
	m.t.Helper()
	r, err := bpf.Resume(m.t.Context(), m.source(), m.opts, m.at)
	if err != nil {
		m.t.Fatal(err)
	}
	return r
}

func (m *machine) save() error { return bpf.Save(m.t.Context(), m.source(), m.opts, m.at) }

// off ends a boot, after save or without.
func (m *machine) off() {
	m.t.Helper()
	if err := bpf.Stop(m.t.Context(), m.dev, m.opts); err != nil {
		m.t.Fatal(err)
	}
	run(m.t, "blockdev", "--setrw", m.dev)
	m.opts = places(m.t)
}

func (m *machine) resize(size int64) {
	m.t.Helper()
	if err := os.Truncate(m.file, size); err != nil {
		m.t.Fatal(err)
	}
	run(m.t, "losetup", "-c", m.dev)
}

// clone puts another disk with the same content in the place of this one. A loop device has no
// serial number to tell them apart by.
func (m *machine) clone() {
	m.t.Helper()
	m.file = filepath.Join(m.t.TempDir(), "clone")
	run(m.t, "cp", "--sparse=always", m.dev, m.file)
	m.dev = loop(m.t, m.file)
}

// writes mounts the filesystem and writes a file of a MiB.
func (m *machine) writes(name string) {
	m.t.Helper()
	dir := m.t.TempDir()
	run(m.t, "mount", m.dev, dir)
	if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.Repeat(name, 1<<20/len(name))), 0o600); err != nil {
		m.t.Fatal(err)
	}
	run(m.t, "umount", dir)
}

// copied is a copy of the disk and its mark.
type copied struct {
	owner   string
	content []byte
	mark    track.Mark
}

func (m *machine) copy() copied { m.t.Helper(); return m.copyFor("mirror") }

func (m *machine) copyFor(owner string) copied {
	m.t.Helper()
	l := open(m.t, m.dev, m.opts)
	mark := cut(m.t, l)
	if err := l.Keep(m.t.Context(), owner, mark, true); err != nil {
		m.t.Fatal(err)
	}
	raw, err := os.ReadFile(m.file)
	if err != nil {
		m.t.Fatal(err)
	}
	return copied{owner, raw, mark}
}

// follows brings a copy up to date by what is told to have changed, and returns how much that is.
func (m *machine) follows(c *copied) int64 {
	m.t.Helper()
	l := open(m.t, m.dev, m.opts)
	mark := cut(m.t, l)
	set, err := l.Changes(m.t.Context(), c.mark, mark)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := l.Keep(m.t.Context(), c.owner, mark, true); err != nil {
		m.t.Fatal(err)
	}
	raw, err := os.ReadFile(m.file)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, e := range set.Extents() {
		copy(c.content[e.Off:e.End()], raw[e.Off:e.End()])
	}
	for off := 0; off < len(raw); off += 4096 {
		if string(raw[off:off+4096]) != string(c.content[off:off+4096]) {
			m.t.Fatalf("the block at byte %d is not told", off)
		}
	}
	c.mark = mark
	return set.Bytes()
}

func (m *machine) wantLost(c copied, r bpf.Resumed, words string) {
	m.t.Helper()
	if !strings.Contains(r.Lost, words) {
		m.t.Errorf("lost because %q, want %q", r.Lost, words)
	}
	l := open(m.t, m.dev, m.opts)
	_, err := l.Changes(m.t.Context(), c.mark, "")
	wantLost(m.t, err, words)
}

// wantReadOnly wants a disk whose tracking was saved to refuse writes.
func (m *machine) wantReadOnly() {
	m.t.Helper()
	f, err := os.OpenFile(m.dev, os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 4096)); err == nil {
		m.t.Error("it can be written to after it was saved")
	}
}

func TestMarksOutliveCleanReboots(t *testing.T) {
	m := newMachine(t)
	if r := m.boot(); !strings.Contains(r.Lost, "not saved") {
		t.Errorf("%+v", r)
	}
	c := m.copy()
	for _, name := range []string{"one", "two", "three"} {
		m.writes(name + " before")
		if err := m.save(); err != nil {
			t.Fatal(err)
		}
		m.wantReadOnly()
		m.off()
		r := m.boot()
		if r.Lost != "" || r.Marks != 1 || r.Silent != diskSize-fsSize {
			t.Errorf("%+v", r)
		}
		m.writes(name + " after")
		if n := m.follows(&c); n > diskSize-fsSize+8<<20 {
			t.Errorf("%d bytes are told", n)
		}
	}
}

// A mark that was kept two boots ago is good, one that was not is not.
func TestOldMarksOutliveSeveralReboots(t *testing.T) {
	m := newMachine(t)
	m.boot()
	c := m.copy()
	for _, name := range []string{"one", "two", "three"} {
		m.writes(name)
		if err := m.save(); err != nil {
			t.Fatal(err)
		}
		m.off()
		m.boot()
	}
	m.follows(&c)
	m.off()
}

func TestWhateverIsNotAsItWasLosesTheMarks(t *testing.T) {
	for _, c := range []struct {
		name, words string
		between     func(m *machine)
	}{
		{"mounted", "somebody used the disk after it was shut down: ext4 at byte 0: mount count", func(m *machine) { m.writes("elsewhere") }},
		{"checked", "ext4 at byte 0: ", func(m *machine) { run(m.t, "e2fsck", "-f", "-p", m.dev) }},
		{"tuned", "ext4 at byte 0: ", func(m *machine) { run(m.t, "tune2fs", "-c", "9", m.dev) }},
		{"made anew", "ext4 at byte 0", func(m *machine) { run(m.t, "mkfs.ext4", "-q", "-F", m.dev, "48M") }},
		{"grown", "resized from 67108864 to 68157440", func(m *machine) { m.resize(diskSize + 1<<20) }},
		{"shrunk", "resized from 67108864 to 66060288", func(m *machine) { m.resize(diskSize - 1<<20) }},
		{"cloned, and the clone was mounted", "ext4 at byte 0: mount count", func(m *machine) {
			m.clone()
			m.writes("elsewhere")
		}},
		{"mounted now", "it was in use before tracking began: mounted: ext4 on", func(m *machine) {
			dir := m.t.TempDir()
			run(m.t, "mount", m.dev, dir)
			m.t.Cleanup(func() { run(m.t, "umount", dir) })
		}},
		{"record is gone", "not saved", func(m *machine) {
			if err := os.RemoveAll(m.at.Dir); err != nil {
				m.t.Fatal(err)
			}
		}},
		{"record is damaged", "damaged", func(m *machine) {
			path := filepath.Join(m.at.Dir, "disk.saved")
			raw, err := os.ReadFile(path)
			raw[len(raw)/2] ^= 1
			if err := errors.Join(err, os.WriteFile(path, raw, 0o600)); err != nil {
				m.t.Fatal(err)
			}
		}},
		{"record of the future", "the clock went back", func(m *machine) { bpf.EditSaved(m.t, m.at, time.Hour, "") }},
		{"record of another disk", "it is another disk (one without a name, was serial 7)", func(m *machine) { bpf.EditSaved(m.t, m.at, 0, "serial 7") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t)
			m.boot()
			before := m.copy()
			m.writes("file")
			if err := m.save(); err != nil {
				t.Fatal(err)
			}
			m.off()
			c.between(m)
			m.wantLost(before, m.boot(), c.words)
		})
	}
}

func TestAPowerCutLosesTheMarks(t *testing.T) {
	m := newMachine(t)
	m.boot()
	c := m.copy()
	if err := m.save(); err != nil {
		t.Fatal(err)
	}
	m.off()
	m.boot()
	m.off() // nothing was saved
	m.wantLost(c, m.boot(), "not shut down cleanly")
}

// A record that was used, and is there again from a backup, must not vouch for what went on from it.
func TestARestoredRecordDoesNotVouchForLaterMarks(t *testing.T) {
	m := newMachine(t)
	m.boot()
	c := m.copy()
	if err := m.save(); err != nil {
		t.Fatal(err)
	}
	m.off()
	path := filepath.Join(m.at.Dir, "disk.saved")
	kept, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m.boot()
	later := m.copy()
	if err := m.save(); err != nil {
		t.Fatal(err)
	}
	m.off()
	if err := os.WriteFile(path, kept, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := m.boot(); r.Lost != "" {
		t.Fatalf("%+v", r) // nobody has written meanwhile
	}
	m.follows(&c)
	l := open(t, m.dev, m.opts)
	_, err = l.Changes(t.Context(), later.mark, "")
	wantLost(t, err, "of another tracking")
	m.off()
}

func TestADiskInUseIsNotSaved(t *testing.T) {
	m := newMachine(t)
	m.boot()
	c := m.copy()
	dir := t.TempDir()
	run(t, "mount", m.dev, dir)
	err := m.save()
	run(t, "umount", dir)
	wantLost(t, err, "still in use when the machine was shut down: mounted: ext4")
	m.writes("it is writable")
	m.off()
	m.wantLost(c, m.boot(), "still in use when the machine was shut down")
}

// A copy of a mounted disk is what a power cut leaves.
func TestAFilesystemToBeRecoveredIsNotSaved(t *testing.T) {
	m := newMachine(t)
	dir := t.TempDir()
	run(t, "mount", m.dev, dir)
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "sync", "--file-system", dir)
	raw, err := os.ReadFile(m.file)
	run(t, "umount", dir)
	if err := errors.Join(err, os.WriteFile(m.file, raw, 0o600)); err != nil {
		t.Fatal(err)
	}
	run(t, "blockdev", "--flushbufs", m.dev)
	m.boot()
	wantLost(t, m.save(), "ext4 at byte 0 of the disk was not unmounted cleanly")
	m.off()
}

// A reboot of user space alone leaves the kernel's tracking on, with all that was written meanwhile.
func TestTrackingThatIsOnGoesOn(t *testing.T) {
	m := newMachine(t)
	m.boot()
	c := m.copy()
	m.writes("before")
	if err := m.save(); err != nil {
		t.Fatal(err)
	}
	if r := m.boot(); r.Lost != "" || r.Marks != 1 {
		t.Errorf("%+v", r)
	}
	m.writes("after")
	if n := m.follows(&c); n > 8<<20 {
		t.Errorf("%d bytes are told", n)
	}
	m.off() // the record is used: this is no clean shutdown
	m.wantLost(c, m.boot(), "not shut down cleanly")
}

// A program may have the disk open without claiming it, and what it wrote may be in memory yet.
func TestWhatIsInThePageCacheIsWrittenBeforeItIsSaved(t *testing.T) {
	m := newMachine(t)
	m.boot()
	c := m.copy()
	f, err := os.OpenFile(m.dev, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(strings.Repeat("x", 4096)), 40<<20); err != nil {
		t.Fatal(err)
	}
	if err := m.save(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(strings.Repeat("y", 4096)), 41<<20); err == nil {
		t.Error("it could be written to after it was saved")
	}
	m.off()
	if r := m.boot(); r.Lost != "" {
		t.Errorf("%+v", r)
	}
	m.follows(&c)
	m.off()
}

func TestADiskThatIsNotTrackedIsNotSaved(t *testing.T) {
	m := newMachine(t)
	if err := m.save(); !errors.Is(err, bpf.ErrNotTracked) {
		t.Error(err)
	}
}

// What is silent is the rest of the disk.
func TestTheDisksOfTheseTestsAreAsTheySay(t *testing.T) {
	m := newMachine(t)
	f, err := os.Open(m.file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := witness.Read(f, diskSize)
	if want := extent.NewSet(extent.Extent{Off: fsSize, Len: diskSize - fsSize}); err != nil || !w.Silent().Equal(want) {
		t.Errorf("%s%v: %v", w, w.Silent(), err)
	}
}

var bootSteps = flag.Int("boot-steps", 30, "how many steps the model of reboots takes")

// Boots, shutdowns, crashes, mounts elsewhere and records that are put back come at random, with
// several copies that follow. Whenever a mark is vouched for, the copy is the disk.
func TestNoWriteIsLostWhateverHappensBetweenBoots(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	h := &hazards{machine: newMachine(t), r: rand.New(rand.NewPCG(seed, 0))}
	h.boot()
	for i := range 3 {
		h.copies = append(h.copies, h.copyFor(fmt.Sprint("mirror ", i)))
	}
	for range *bootSteps {
		step := []func(){h.write, h.write, h.write, h.follow, h.follow, h.follow, h.reboot, h.reboot, h.reboot, h.reboot, h.crash}
		step[h.r.IntN(len(step))]()
		if t.Failed() {
			break
		}
	}
	t.Log(h.steps, "marks kept", h.kept, "lost", h.lost)
	h.off()
}

// hazards is a machine to which things happen.
type hazards struct {
	*machine
	r          *rand.Rand
	copies     []copied
	record     []byte // that was used
	steps      []string
	kept, lost int
}

func (h *hazards) write() {
	h.steps = append(h.steps, "write")
	h.writes(fmt.Sprint("file ", h.r.IntN(4)))
}

// follow brings one copy up to date, or makes it anew when its mark is lost.
func (h *hazards) follow() {
	c := &h.copies[h.r.IntN(len(h.copies))]
	l := open(h.t, h.dev, h.opts)
	if err := l.Vouch(h.t.Context(), c.mark); err != nil {
		if !errors.Is(err, track.ErrMarkLost) {
			h.t.Fatal(err)
		}
		h.steps, h.lost = append(h.steps, "copy "+c.owner), h.lost+1
		*c = h.copyFor(c.owner)
		return
	}
	h.steps, h.kept = append(h.steps, "follow "+c.owner), h.kept+1
	h.follows(c)
}

func (h *hazards) crash() {
	h.steps = append(h.steps, "crash")
	h.off()
	h.boot()
}

// reboot is a clean one; now and then another system mounts the disk in between, or a record that was
// used already is put back.
func (h *hazards) reboot() {
	h.steps = append(h.steps, "reboot")
	if err := h.save(); err != nil {
		h.t.Fatal(err)
	}
	path := filepath.Join(h.at.Dir, "disk.saved")
	raw, err := os.ReadFile(path)
	if err != nil {
		h.t.Fatal(err)
	}
	h.off()
	switch n := h.r.IntN(6); {
	case n == 0:
		h.steps = append(h.steps, "elsewhere")
		h.writes("elsewhere")
	case n == 1 && h.record != nil:
		h.steps = append(h.steps, "an old record")
		if err := os.WriteFile(path, h.record, 0o600); err != nil {
			h.t.Fatal(err)
		}
	case n < 4:
		h.record = raw
	}
	h.boot()
}
