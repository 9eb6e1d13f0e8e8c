//go:build linux

// Package persist_test runs in guests only (see package guest): a test for each boot of one machine,
// whose disks have persistent snapshots.
package persist_test

import (
	"context"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/extent"
	"tidemark/linux/atomicfile"
	"tidemark/linux/dmhold"
	"tidemark/linux/fsfreeze"
	"tidemark/linux/reexec"
	"tidemark/snapshot"
	"tidemark/test/vm/guest"
	"tidemark/test/vm/guest/instant"
	"tidemark/track/bpf"
)

func TestMain(m *testing.M) {
	reexec.Main(dmhold.Holder, fsfreeze.Watchdog)
	guest.Main(m)
}

var (
	options = snapshot.Options{StateDir: "/var/lib/tidemark", Track: bpf.Options{RunDir: "/run/tidemark"}}
	kinds   = []string{"ext4", "xfs"}
)

// where is where the filesystem of a kind is mounted.
func where(kind string) string { return "/mnt/" + kind }

func device(kind string) string { return "/dev/mapper/" + kind }

// boot does what udev and root do elsewhere: /etc outlives the boot, and disks have names.
func boot(t *testing.T) {
	t.Helper()
	must(t, os.MkdirAll("/etc/tidemark", 0o755))
	guest.Run(t, "mount", guest.Disk(t, "state"), "/etc/tidemark")
	must(t, os.MkdirAll("/dev/disk/by-id", 0o755))
	var table strings.Builder
	for _, kind := range kinds {
		must(t, os.MkdirAll(where(kind), 0o755))
		link := "/dev/disk/by-id/virtio-" + kind
		must(t, os.Symlink(guest.Disk(t, kind), link))
		table.WriteString(kind + " " + link + " linear system\n")
	}
	guest.WriteFile(t, "/etc/tidemark/era.conf", table.String())
}

// open is what the units of systemd run before anything is mounted.
func open(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("tidemark", "boot", "open", "--stage", "system", "--wait", "10s").CombinedOutput()
	if t.Log(string(out)); err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// repair is what the unit that looks after snapshots runs when all is mounted, and those of the
// disks at the end.
func repair(t *testing.T) string {
	t.Helper()
	out := guest.Run(t, "tidemark", "snapshot", "repair")
	t.Log(out)
	return out
}

func mount(t *testing.T, kind string) {
	t.Helper()
	guest.Run(t, "mount", device(kind), where(kind))
	repair(t)
}

// take takes a persistent snapshot of both filesystems while they are in use, and keeps what they
// held.
func take(t *testing.T, name string) {
	t.Helper()
	var held [][]byte
	req := snapshot.Request{Name: name, Persistent: true, MaxFreeze: time.Minute, Instant: func(context.Context) error {
		for _, kind := range kinds {
			content, err := instant.ReadAll(device(kind) + "+real")
			if held = append(held, content); err != nil {
				return err
			}
		}
		return nil
	}}
	for _, kind := range kinds {
		size := int64(14 << 20)
		if name == "one" && kind == "ext4" { // the load may change 10 MiB of files and all of the journal, 4 MiB
			size = 16 << 20
		}
		req.Devices = append(req.Devices, snapshot.Device{Path: device(kind), Size: size})
	}
	s, err := snapshot.Create(t.Context(), options, req)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range s.Volumes {
		for _, e := range v.Store.Extents {
			clear(held[i][e.Off:e.End()])
		}
		instant.Compare(t, held[i], instant.MustRead(t, s.Image(v)))
		must(t, atomicfile.WriteJSON(truthPath(kinds[i], name), atomicfile.Options{}, truth{v.Store.Extents, sum(held[i])}))
	}
}

// truth is what a snapshot holds.
type truth struct {
	Store []extent.Extent // which reads as zeros
	Sum   uint64
}

func truthPath(kind, name string) string { return "/etc/tidemark/" + kind + "-" + name }

// sum is FNV-1a of words: an emulated CPU takes seconds for the SHA of a small disk.
func sum(p []byte) uint64 {
	sum := uint64(0xcbf29ce484222325)
	for ; len(p) >= 8; p = p[8:] {
		sum = (sum ^ binary.LittleEndian.Uint64(p)) * 0x100000001b3
	}
	return sum
}

// same fails unless a device holds what the snapshot does.
func same(t *testing.T, device, kind, name string) {
	t.Helper()
	var want truth
	must(t, atomicfile.ReadJSON(truthPath(kind, name), &want))
	got := instant.MustRead(t, device)
	for _, e := range want.Store {
		clear(got[e.Off:e.End()])
	}
	if sum(got) != want.Sum {
		t.Errorf("%s holds something else than the snapshot %s", device, name)
	}
}

func image(kind, name string) string { return device(kind) + "+" + name }

// use writes some MiB to filesystems.
func use(t *testing.T, folders ...string) {
	t.Helper()
	for _, at := range folders {
		guest.Run(t, "dd", "if=/dev/urandom", "of="+filepath.Join(at, "written"), "bs=64k", "count=32", "conv=fsync", "status=none")
		guest.Run(t, "dd", "if=/bin/tidemark", "of="+filepath.Join(at, "copy"), "bs=64k", "count=32", "conv=fsync", "status=none")
		guest.Run(t, "sync")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func status(t *testing.T, name string) string {
	t.Helper()
	out, _ := exec.Command("tidemark", "snapshot", "status", name).CombinedOutput() // a lost one fails
	t.Log(string(out))
	return string(out)
}

func want(t *testing.T, text, part string, times int) {
	t.Helper()
	if n := strings.Count(text, part); n != times {
		t.Errorf("%q is there %d times, not %d: %s", part, n, times, text)
	}
}

// bare fails when something of snapshots is left.
func bare(t *testing.T) {
	t.Helper()
	if left := guest.Run(t, "dmsetup", "info", "-c", "--noheadings", "-o", "name,suspended"); strings.Contains(left, "+") || strings.Contains(left, "Suspended") {
		t.Errorf("left behind:\n%s", left)
	}
	files, _ := filepath.Glob("/mnt/*/.tidemark-*")
	records, _ := filepath.Glob(snapshot.EarlyDir + "/*")
	if files = append(files, records...); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
}

// TestBoot1 takes a snapshot of busy disks, finds it again after they were shut down, and uses them
// until the power is cut.
func TestBoot1(t *testing.T) {
	boot(t)
	open(t)
	for _, name := range []string{"TEST_DIR", "TEST_DEV", "QA_CHECK_FS"} {
		t.Setenv(name, "x") // by which mkfs.xfs makes small ones
	}
	var stop []func()
	for _, kind := range kinds {
		guest.Run(t, "mkfs."+kind, "-q", map[string]string{"ext4": "-FElazy_itable_init=0", "xfs": "-f"}[kind], device(kind))
		guest.Run(t, "mount", device(kind), where(kind))
		stop = append(stop, instant.Load(t, where(kind)))
	}
	take(t, "one")
	settle(t)
	for _, f := range stop {
		f()
	}
	down(t)
	want(t, open(t), "is there again", 2)
	want(t, open(t), "again", 0)
	for _, kind := range kinds {
		same(t, image(kind, "one"), kind, "one")
		mount(t, kind)
		instant.Load(t, where(kind))
	}
	settle(t)
	for _, kind := range kinds {
		same(t, image(kind, "one"), kind, "one")
	}
	guest.Tell(t, "cut")
}

// settle lets the load write for a while.
func settle(t *testing.T) {
	t.Helper()
	for range 15 {
		guest.Run(t, "sync")
	}
}

// down is a shutdown without a boot: filesystems, units and devices end as they do then.
func down(t *testing.T) {
	t.Helper()
	for _, kind := range kinds {
		_ = exec.Command("umount", where(kind)).Run() // it may not be mounted
	}
	repair(t)
	for left := []string{""}; len(left) > 0; {
		left = nil
		out := guest.Run(t, "dmsetup", "info", "-c", "--noheadings", "-o", "name")
		if out == "No devices found" {
			return
		}
		for name := range strings.FieldsSeq(out) {
			if exec.Command("dmsetup", "remove", "--retry", name).Run() != nil {
				left = append(left, name) // another one lies on it
			}
		}
	}
}

// TestBoot2 finds the snapshot of ext4 after the power cut, and that the one of XFS cannot be relied
// on; that the disks were used without the next one; then it rolls back to another, and the power is
// cut in the middle of the last rollback.
func TestBoot2(t *testing.T) {
	boot(t)
	out := open(t)
	want(t, out, "the snapshot one of ext4 is there again", 1)
	want(t, out, "the snapshot one of xfs is lost: the power was cut while the disk was mounted", 1)
	same(t, image("ext4", "one"), "ext4", "one")
	for _, kind := range kinds {
		mount(t, kind)
	}
	use(t, where("ext4"), where("xfs"))
	same(t, image("ext4", "one"), "ext4", "one")
	want(t, status(t, "one"), "lost: the power was cut while the disk was mounted, and XFS", 1)
	guest.Run(t, "tidemark", "snapshot", "destroy", "one")
	bare(t)

	take(t, "two")
	down(t)
	for _, kind := range kinds {
		guest.Run(t, "mount", guest.Disk(t, kind), where(kind))
		use(t, where(kind))
		guest.Run(t, "umount", where(kind))
	}
	want(t, open(t), "is lost: the disk was used without it: ", 2)
	for _, kind := range kinds {
		if _, err := os.Stat(image(kind, "two")); err == nil {
			t.Errorf("%s is shown", image(kind, "two"))
		}
		mount(t, kind)
	}
	want(t, status(t, "two"), "lost: the disk was used without it: ", 2)
	guest.Run(t, "tidemark", "snapshot", "destroy", "two")
	bare(t)

	take(t, "three")
	use(t, where("ext4"), where("xfs"))
	refused(t, "mounted or in use", "rollback", "three")
	for _, kind := range kinds {
		guest.Run(t, "umount", where(kind))
	}
	out = guest.Run(t, "tidemark", "snapshot", "rollback", "three", "--dry-run")
	want(t, out, "to be put back", 2)
	mark := strings.Fields(guest.Run(t, "tidemark", "track", "start", device("ext4")))[1]
	t.Log(guest.Run(t, "tidemark", "snapshot", "rollback", "three"))
	for _, kind := range kinds {
		same(t, device(kind), kind, "three")
	}
	if out, err := exec.Command("tidemark", "track", "changes", device("ext4"), "--since", mark).CombinedOutput(); err == nil && !strings.Contains(string(out), "41943040") {
		t.Errorf("the mark has outlived the rollback: %s", out)
	}
	guest.Run(t, "tidemark", "track", "stop", device("ext4"))
	for _, kind := range kinds {
		guest.Run(t, "mount", device(kind), where(kind))
	}
	repair(t)
	bare(t)

	take(t, "four")
	use(t, where("ext4"), where("xfs"))
	for _, kind := range kinds {
		guest.Run(t, "umount", where(kind))
	}
	guest.WriteFile(t, "/sys/module/dm_snapshot/parameters/snapshot_copy_throttle", "1")
	s, err := snapshot.Find(options, "four")
	must(t, err)
	must(t, s.RollBack(t.Context()))
	want(t, status(t, "four"), "being rolled back to", 2)
	guest.Tell(t, "cut")
}

// TestBoot3 takes the rollback up, and mounts the disks while it goes on.
func TestBoot3(t *testing.T) {
	boot(t)
	guest.WriteFile(t, "/sys/module/dm_snapshot/parameters/snapshot_copy_throttle", "2")
	mend := spoil(t, "four")
	out, err := exec.Command("tidemark", "boot", "open", "--stage", "system", "--wait", "10s").CombinedOutput()
	if err == nil {
		t.Error("the disks are open, though no rollback can go on")
	}
	want(t, string(out), "refuses everything until it does", 2)
	want(t, string(out), "is another snapshot's", 1)
	for _, kind := range kinds {
		if out, err := exec.Command("dd", "if="+device(kind), "of=/dev/null", "count=1").CombinedOutput(); err == nil {
			t.Errorf("half of a rollback of %s can be read: %s", kind, out)
		}
	}
	refused(t, "is being rolled back to it", "destroy", "four")
	mend()
	want(t, repair(t), "goes on", 2)
	for _, kind := range kinds {
		same(t, device(kind), kind, "four")
		guest.Run(t, "mount", device(kind), where(kind))
		guest.WriteFile(t, filepath.Join(where(kind), "after"), "after")
	}
	guest.WriteFile(t, "/sys/module/dm_snapshot/parameters/snapshot_copy_throttle", "100")
	t.Log(guest.Run(t, "tidemark", "snapshot", "rollback", "four"))
	bare(t)
	for _, kind := range kinds {
		guest.Run(t, "umount", where(kind))
	}
	guest.Run(t, "e2fsck", "-fn", device("ext4"))
	for _, kind := range kinds {
		guest.Run(t, "dmsetup", "remove", "--retry", kind)
		guest.Run(t, "mount", guest.Disk(t, kind), where(kind))
		if got, err := os.ReadFile(filepath.Join(where(kind), "after")); err != nil || string(got) != "after" {
			t.Errorf("%s: %q, %v", kind, got, err)
		}
		guest.Run(t, "umount", where(kind))
	}
}

// spoil takes the header from the store on ext4, and puts that of another snapshot into the one on
// XFS, until mend is called.
func spoil(t *testing.T, name string) (mend func()) {
	t.Helper()
	s, err := snapshot.Find(options, name)
	must(t, err)
	swap := func(i int, off int64, with []byte) (was []byte) {
		f, err := os.OpenFile(guest.Disk(t, kinds[i]), os.O_RDWR|os.O_SYNC, 0)
		must(t, err)
		defer f.Close()
		was = make([]byte, len(with))
		_, err = f.ReadAt(was, s.Volumes[i].Store.Pieces[0].Off+off)
		must(t, err)
		_, err = f.WriteAt(with, s.Volumes[i].Store.Pieces[0].Off+off)
		must(t, err)
		return was
	}
	header, mark := swap(0, 0, make([]byte, 4096)), swap(1, 16, make([]byte, 16))
	return func() {
		t.Helper()
		swap(0, 0, header)
		swap(1, 16, mark)
	}
}

func refused(t *testing.T, part string, args ...string) {
	t.Helper()
	out, err := exec.Command("tidemark", append([]string{"snapshot"}, args...)...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), part) {
		t.Errorf("%v: %v: %s", args, err, out)
	}
}
