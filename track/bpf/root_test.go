package bpf_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/track/bpf"
)

// rooted is a machine whose disk has the root filesystem: what is saved lies on it.
type rooted struct {
	*machine
	dir  string // where it is mounted in every boot
	kind string
}

// rootKinds are the filesystems that root may be on.
var rootKinds = []string{"ext4", "xfs"}

func newRooted(t *testing.T, kind string) *rooted {
	m := &rooted{machine: newMachine(t), dir: t.TempDir(), kind: kind}
	if kind == "xfs" { // with these variables it makes one that is as small
		run(t, "env", "TEST_DIR=x", "TEST_DEV=x", "QA_CHECK_FS=x", "mkfs.xfs", "-q", "-f", "-d", "size=48m", "-l", "size=10m", m.dev)
	}
	m.at = bpf.Place{Dir: filepath.Join(m.dir, "state"), Name: "disk", Root: true}
	t.Cleanup(func() {
		unix.Unmount(m.dir, 0) //nolint:errcheck // it may be unmounted already
	})
	return m
}

// boot is the beginning of a boot: an initramfs, then a unit.
func (m *rooted) boot() bpf.Resumed {
	m.t.Helper()
	m.initramfs()
	return m.unit()
}

func (m *rooted) initramfs() {
	m.t.Helper()
	for range 2 { // which tries several times
		if err := bpf.Early(m.t.Context(), m.source(), m.opts); err != nil {
			m.t.Fatal(err)
		}
	}
}

func (m *rooted) unit() bpf.Resumed {
	m.t.Helper()
	m.mount()
	r := m.machine.boot()
	if err := m.at.Prepare(); err != nil {
		m.t.Fatal(err)
	}
	return r
}

// mount is that of an initramfs, read-only, then made writable.
func (m *rooted) mount() {
	m.t.Helper()
	run(m.t, "mount", "-o", "ro", m.dev, m.dir)
	run(m.t, "mount", "-o", "remount,rw", m.dir)
}

// save is the end of a shutdown.
func (m *rooted) save() error {
	m.t.Helper()
	run(m.t, "mount", "-o", "remount,ro", m.dir)
	return m.machine.save()
}

func (m *rooted) off() {
	m.t.Helper()
	run(m.t, "umount", m.dir)
	m.machine.off()
}

func (m *rooted) writes(name string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), []byte(strings.Repeat(name, 1<<20/len(name))), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// still calls what with the filesystem frozen.
func (m *rooted) still(what func()) {
	m.t.Helper()
	run(m.t, "fsfreeze", "--freeze", m.dir)
	defer run(m.t, "fsfreeze", "--unfreeze", m.dir)
	what()
}

func (m *rooted) copy() (c copied) {
	m.still(func() { c = m.machine.copy() })
	return c
}

func (m *rooted) follows(c *copied) (n int64) {
	m.still(func() { n = m.machine.follows(c) })
	return n
}

func TestMarksOfRootOutliveCleanReboots(t *testing.T) {
	for _, kind := range rootKinds {
		t.Run(kind, func(t *testing.T) { newRooted(t, kind).rebootsCleanly() })
	}
}

func (m *rooted) rebootsCleanly() {
	t := m.t
	t.Helper()
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
		if err := unix.Mount(m.dev, m.dir, m.kind, unix.MS_REMOUNT, ""); err == nil {
			t.Error("it can be mounted so that it can be written after it was saved")
		}
		m.off()
		if r := m.boot(); r.Lost != "" || r.Marks != 1 || r.Silent < diskSize-fsSize+4<<20 {
			t.Errorf("%+v", r)
		}
		m.writes(name + " after")
		if n := m.follows(&c); n > diskSize-fsSize+12<<20 {
			t.Errorf("%d bytes are told", n)
		}
	}
	m.off()
}

// A reboot of user space alone leaves the kernel's tracking on, and calls nothing of what saves root.
func TestTrackingOfRootThatIsOnGoesOn(t *testing.T) {
	m := newRooted(t, "ext4")
	m.boot()
	c := m.copy()
	m.writes("before")
	run(t, "umount", m.dir)
	if r := m.unit(); r.Lost != "" || r.Marks != 1 {
		t.Errorf("%+v", r)
	}
	m.writes("after")
	if n := m.follows(&c); n > 8<<20 {
		t.Errorf("%d bytes are told", n)
	}
	m.off()
	m.wantLost(c, m.boot(), "not shut down cleanly")
	m.off()
}

func TestWhateverIsNotAsItWasLosesTheMarksOfRoot(t *testing.T) {
	for _, c := range []struct {
		kind, name, words string
		between           func(m *rooted)
	}{
		{"ext4", "mounted", "ext4 at byte 0: mount count", func(m *rooted) { m.machine.writes("elsewhere") }},
		{"ext4", "checked", "ext4 at byte 0: ", func(m *rooted) { run(m.t, "e2fsck", "-f", "-p", m.dev) }},
		{"ext4", "tuned", "ext4 at byte 0: ", func(m *rooted) { run(m.t, "tune2fs", "-c", "9", m.dev) }},
		{"xfs", "mounted", "xfs at byte 0: log head", func(m *rooted) { m.machine.writes("elsewhere") }},
		{"xfs", "checked", "xfs at byte 0: groups", func(m *rooted) { run(m.t, "xfs_repair", m.dev) }},
		{"ext4", "checked in the initramfs", "ext4 at byte 0: ", func(m *rooted) { run(m.t, "e2fsck", "-f", "-y", m.dev) }},
		{"ext4", "crashed before it was taken up", "ext4 at byte 0: mount count", func(m *rooted) {
			m.initramfs()
			m.mount()
			m.writes("in a boot that crashes")
			m.off()
		}},
		{"ext4", "grown", "resized from 67108864 to 68157440", func(m *rooted) { m.resize(diskSize + 1<<20) }},
		{"ext4", "shrunk", "resized from 67108864 to 66060288", func(m *rooted) { m.resize(diskSize - 1<<20) }},
		{"ext4", "cloned, and the clone was mounted", "ext4 at byte 0: mount count", func(m *rooted) {
			m.clone()
			m.machine.writes("elsewhere")
		}},
	} {
		t.Run(c.kind+" "+c.name, func(t *testing.T) {
			m := newRooted(t, c.kind)
			m.boot()
			before := m.copy()
			m.writes("file")
			if err := m.save(); err != nil {
				t.Fatal(err)
			}
			m.off()
			c.between(m)
			m.wantLost(before, m.boot(), c.words)
			m.off()
		})
	}
}

// cut cuts the power after root was made writable and some data was overwritten in place, and before
// the record was marked as used.
func (m *rooted) cut() {
	m.t.Helper()
	m.initramfs()
	m.mount()
	f, err := os.OpenFile(filepath.Join(m.dir, "file"), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(block.AlignedBuffer(4096), 4096); err != nil {
		m.t.Fatal(err)
	}
	raw, err := os.ReadFile(m.file)
	if err != nil {
		m.t.Fatal(err)
	}
	f.Close()
	m.off()
	if err := os.WriteFile(m.file, raw, 0o600); err != nil {
		m.t.Fatal(err)
	}
	run(m.t, "blockdev", "--flushbufs", m.dev)
}

func TestAPowerCutBeforeTheRecordIsUsedShows(t *testing.T) {
	for _, kind := range rootKinds {
		t.Run(kind, func(t *testing.T) {
			m := newRooted(t, kind)
			m.boot()
			before := m.copy()
			m.writes("file")
			if err := m.save(); err != nil {
				t.Fatal(err)
			}
			m.off()
			m.cut()
			m.wantLost(before, m.boot(), "somebody used the disk after it was shut down: "+kind+" at byte 0")
			m.off()
		})
	}
}

func TestAnInitramfsThatDoesNotTrackLosesTheMarks(t *testing.T) {
	m := newRooted(t, "ext4")
	m.boot()
	c := m.copy()
	if err := m.save(); err != nil {
		t.Fatal(err)
	}
	m.off()
	m.wantLost(c, m.unit(), "the initramfs did not begin to track it")
	m.off()
}

func TestAPowerCutLosesTheMarksOfRoot(t *testing.T) {
	m := newRooted(t, "ext4")
	m.boot()
	c := m.copy()
	if err := m.save(); err != nil {
		t.Fatal(err)
	}
	m.off()
	m.boot()
	m.off() // nothing was saved
	m.wantLost(c, m.boot(), "not shut down cleanly")
	m.off()
}

func TestRootThatIsWritableIsNotSaved(t *testing.T) {
	m := newRooted(t, "ext4")
	m.boot()
	c := m.copy()
	wantLost(t, m.machine.save(), "is writable")
	m.writes("it is")
	m.off()
	m.wantLost(c, m.boot(), "is writable")
	m.off()
}

// Blocks that are somebody else's by now are not written.
func TestAFileThatWasReplacedIsNotWritten(t *testing.T) {
	m := newRooted(t, "ext4")
	m.boot()
	c := m.copy()
	name := filepath.Join(m.at.Dir, "disk.raw")
	run(t, "chattr", "-i", name)
	run(t, "cp", name, name+".copy")
	if err := os.WriteFile(name, []byte(strings.Repeat("content ", 4<<20/8)), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "chattr", "+i", name)
	wantLost(t, m.save(), "it cannot be written past its filesystem")
	if got, err := os.ReadFile(name); err != nil || string(got) != strings.Repeat("content ", 4<<20/8) {
		t.Errorf("it was written: %v", err)
	}
	m.off()
	m.wantLost(c, m.boot(), "it cannot be written past its filesystem")
	m.off()
}

// Boots, shutdowns, crashes and other systems at random, as in the model of data disks.
func TestNoWriteToRootIsLostWhateverHappensBetweenBoots(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	m := newRooted(t, "ext4")
	m.boot()
	c := m.copy()
	kept, lost := 0, 0
	for range *bootSteps {
		switch r.IntN(4) {
		case 0:
			m.writes(fmt.Sprint("file ", r.IntN(4)))
		case 1:
			if r.IntN(3) > 0 {
				if err := m.save(); err != nil {
					t.Fatal(err)
				}
			}
			m.off()
			if r.IntN(4) == 0 {
				m.machine.writes("elsewhere")
			}
			m.boot()
		default:
			l := open(t, m.dev, m.opts)
			if err := l.Vouch(t.Context(), c.mark); err != nil {
				lost++
				c = m.copy()
				continue
			}
			kept++
			m.follows(&c)
		}
		if t.Failed() {
			break
		}
	}
	t.Log("kept", kept, "lost", lost)
	m.off()
}
