//go:build linux

package dm_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/dm"
	"tidemark/test/vm/guest"
)

// A write to a suspended device waits, and goes where the next table says.
func TestSuspendHoldsWritesBack(t *testing.T) {
	ctl := open(t)
	disk := guest.Disk(t, "data")
	guest.Run(t, "dd", "if=/dev/zero", "of="+disk, "bs=1M", "count=2", "conv=fsync")
	info := device(t, ctl, "held", target(2048, "linear", "%s 0", disk))
	f, err := os.OpenFile(info.Path(), os.O_WRONLY|unix.O_SYNC, 0)
	must(t, nil, err)
	defer f.Close()
	info, err = ctl.Suspend("held", dm.SuspendOptions{})
	if err != nil || !info.Suspended {
		t.Fatalf("%+v, %v", info, err)
	}
	want := bytes.Repeat([]byte("held back"), 512)[:4096]
	thread, done := make(chan int), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		thread <- unix.Gettid()
		_, err := f.WriteAt(want, 8192)
		done <- err
	}()
	waitAsleep(t, <-thread)
	_, err = ctl.Load("held", []dm.Target{target(2048, "linear", "%s 2048", disk)}, dm.LoadOptions{})
	must(t, nil, err)
	_, err = ctl.Resume("held")
	must(t, nil, err)
	must(t, nil, <-done)
	if got := read(t, disk, 8192); !bytes.Equal(got, make([]byte, 4096)) {
		t.Error("the write went through the old table")
	}
	if got := read(t, disk, 1<<20+8192); !bytes.Equal(got, want) {
		t.Error("the write did not go through the new table")
	}
}

// waitAsleep waits until a thread waits for a disk.
func waitAsleep(t *testing.T, tid int) {
	t.Helper()
	for {
		stat, err := os.ReadFile("/proc/self/task/" + strconv.Itoa(tid) + "/stat")
		must(t, nil, err)
		if _, after, _ := strings.Cut(string(stat), ") "); strings.HasPrefix(after, "D") {
			return
		}
		runtime.Gosched()
	}
}

// read returns 4 KiB of a device, past the page cache.
func read(t *testing.T, path string, at int) []byte {
	t.Helper()
	out, err := exec.Command("dd", "if="+path, "bs=4096", "count=1", "skip="+strconv.Itoa(at/4096), "iflag=direct", "status=none").Output()
	must(t, nil, err)
	return out
}

// Suspend freezes a mounted filesystem, unless it is told not to.
func TestSuspendFreezesFilesystems(t *testing.T) {
	guest.Modprobe(t, "ext4")
	ctl := open(t)
	info := device(t, ctl, "mounted", target(32768, "linear", "%s 0", guest.Disk(t, "data")))
	guest.Run(t, "mkfs.ext4", "-q", info.Path())
	dir := t.TempDir()
	guest.Run(t, "mount", info.Path(), dir)
	t.Cleanup(func() { guest.Run(t, "umount", dir) })
	file := filepath.Join(dir, "file")
	guest.WriteFile(t, file, "before")
	unix.Sync()
	// Left alone, the filesystem takes writes, as far as memory goes.
	_, err := ctl.Suspend("mounted", dm.SuspendOptions{NoLockFS: true})
	must(t, nil, err)
	guest.WriteFile(t, filepath.Join(dir, "file"), "during")
	_, err = ctl.Resume("mounted")
	must(t, nil, err)
	d, err := os.Open(dir)
	must(t, nil, err)
	defer d.Close()
	const fifreeze = 0xc0045877
	// While it is frozen by Suspend, nobody else can freeze it.
	_, err = ctl.Suspend("mounted", dm.SuspendOptions{})
	must(t, nil, err)
	busy := unix.IoctlSetInt(int(d.Fd()), fifreeze, 0)
	_, err = ctl.Resume("mounted")
	must(t, nil, err)
	if !errors.Is(busy, unix.EBUSY) {
		t.Errorf("the filesystem of a suspended device could be frozen: %v", busy)
	}
	guest.WriteFile(t, dir+"/after", "it goes on")
}

// A waiter learns of an event, whoever causes it.
func TestWaitHearsEvents(t *testing.T) {
	guest.Modprobe(t, "dm-snapshot")
	ctl := open(t)
	disk := guest.Disk(t, "data")
	guest.Run(t, "dd", "if=/dev/zero", "of="+disk, "bs=1M", "count=16", "conv=fsync")
	device(t, ctl, "wlow", target(8192, "linear", "%s 0", disk))
	device(t, ctl, "wcow", target(256, "linear", "%s 16384", disk))
	device(t, ctl, "worigin", target(8192, "snapshot-origin", "/dev/mapper/wlow"))
	// An origin learns of a snapshot when it is resumed.
	_, err := ctl.Suspend("worigin", dm.SuspendOptions{})
	must(t, nil, err)
	before := device(t, ctl, "wsnap", target(8192, "snapshot", "/dev/mapper/wlow /dev/mapper/wcow P 8"))
	_, err = ctl.Resume("worigin")
	must(t, nil, err)
	theirs := exec.Command("dmsetup", "wait", "wsnap", strconv.Itoa(int(before.EventNr)))
	must(t, nil, theirs.Start())
	wait := waiting(ctl, "wsnap", before.EventNr)
	guest.Run(t, "dd", "if=/dev/urandom", "of=/dev/mapper/worigin", "bs=1M", "count=3", "oflag=direct")
	after := <-wait
	if after.err != nil || after.info.EventNr == before.EventNr {
		t.Errorf("a full snapshot: %+v, %v", after.info, after.err)
	}
	must(t, nil, theirs.Wait())
	status, _, err := ctl.Status("wsnap", dm.StatusOptions{})
	if err != nil || len(status) != 1 || status[0].Params != "Invalid" {
		t.Errorf("after the event the snapshot is %v, %v", status, err)
	}
	if got := <-waiting(ctl, "wsnap", before.EventNr); got.err != nil || got.info.EventNr != after.info.EventNr {
		t.Errorf("an event that has been: %+v, %v", got.info, got.err)
	}
}

type waited struct {
	info dm.Info
	err  error
}

// waiting waits in the background.
func waiting(ctl *dm.Control, name string, event uint32) <-chan waited {
	c := make(chan waited, 1)
	go func() {
		info, err := ctl.Wait(context.Background(), name, event)
		c <- waited{info, err}
	}()
	return c
}

// A waiter ends when the device is renamed or removed, or the waiter's time is up.
func TestWaitEnds(t *testing.T) {
	ctl := open(t)
	info := device(t, ctl, "we", target(8, "zero", ""))
	ctx, cancel := context.WithCancelCause(context.Background())
	reason := errors.New("no time left")
	time.AfterFunc(time.Millisecond, func() { cancel(reason) })
	if _, err := ctl.Wait(ctx, "we", info.EventNr); !errors.Is(err, reason) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := ctl.Wait(ctx, "we", info.EventNr); !errors.Is(err, reason) {
		t.Errorf("cancelled before: %v", err)
	}
	_, err := ctl.Create("we2", "")
	must(t, nil, err)
	_, err = ctl.Load("we2", []dm.Target{target(8, "zero", "")}, dm.LoadOptions{})
	must(t, nil, err)
	info, err = ctl.Resume("we2")
	must(t, nil, err)
	wait := waiting(ctl, "we2", info.EventNr)
	must(t, nil, ctl.Remove("we2", dm.RemoveOptions{}))
	if got := <-wait; !errors.Is(got.err, dm.ErrNotFound) {
		t.Errorf("removed: %+v, %v", got.info, got.err)
	}
}

// A device in use is not removed, or later.
func TestRemoveWhileInUse(t *testing.T) {
	ctl := open(t)
	info := device(t, ctl, "used", target(64, "zero", ""))
	f, err := os.Open(info.Path())
	must(t, nil, err)
	defer f.Close()
	device(t, ctl, "above", target(64, "linear", "/dev/mapper/used 0"))
	err = ctl.Remove("used", dm.RemoveOptions{})
	if !errors.Is(err, dm.ErrBusy) || !strings.Contains(err.Error(), "opened 2 times, part of dm-") {
		t.Error(err)
	}
	_, err = ctl.Create("later", "")
	must(t, nil, err)
	_, err = ctl.Load("later", []dm.Target{target(64, "zero", "")}, dm.LoadOptions{})
	must(t, nil, err)
	later, err := ctl.Resume("later")
	must(t, nil, err)
	g, err := os.Open(later.Path())
	must(t, nil, err)
	must(t, nil, ctl.Remove("later", dm.RemoveOptions{Deferred: true}))
	if later, err = ctl.Info("later"); err != nil || !later.DeferredRemove {
		t.Errorf("%+v, %v", later, err)
	}
	same(t, "deferred", "deferred remove: yes", "deferred remove: "+map[bool]string{true: "yes"}[strings.Contains(guest.Run(t, "dmsetup", "info", "later"), "DEFERRED REMOVE")])
	_, err = ctl.Message("later", 0, "@cancel_deferred_remove")
	must(t, nil, err)
	if later, err = ctl.Info("later"); err != nil || later.DeferredRemove {
		t.Errorf("%+v, %v", later, err)
	}
	must(t, nil, ctl.Remove("later", dm.RemoveOptions{Deferred: true}))
	must(t, nil, g.Close())
	// Closing the last file is what removes it; the kernel does so on its own time.
	for errors.Is(err, nil) {
		_, err = ctl.Info("later")
		runtime.Gosched()
	}
	if !errors.Is(err, dm.ErrNotFound) {
		t.Error(err)
	}
	must(t, nil, os.Remove(later.Path()))
	// Whoever waits gets it as soon as it is free.
	time.AfterFunc(time.Millisecond, func() { f.Close() })
	must(t, nil, ctl.Remove("above", dm.RemoveOptions{}))
	must(t, nil, ctl.Remove("used", dm.RemoveOptions{Patience: time.Minute}))
	device2(t, ctl)
}

// device2 makes again what the cleanups of a test want to remove.
func device2(t *testing.T, ctl *dm.Control) {
	t.Helper()
	for _, name := range []string{"used", "above"} {
		_, err := ctl.Create(name, "")
		must(t, nil, err)
	}
}

// Every error says what was done to which device, and why it failed.
func TestErrors(t *testing.T) {
	guest.Modprobe(t, "dm-era")
	ctl := open(t)
	disk := guest.Disk(t, "data")
	device(t, ctl, "there", target(64, "zero", ""))
	_, err := ctl.Create("no table", "uuid-1")
	must(t, nil, err)
	t.Cleanup(func() { remove(t, "no table") })
	load := func(table ...dm.Target) error {
		_, err := ctl.Load("no table", table, dm.LoadOptions{})
		return err
	}
	guest.Run(t, "dd", "if=/dev/urandom", "of="+disk, "bs=4096", "count=1", "conv=fsync")
	for _, x := range []struct {
		what string
		err  error
		want error
		text string
	}{
		{"created twice", second(ctl.Create("there", "")), dm.ErrExists, `dm: create "there": `},
		{"UUID of another", second(ctl.Create("new", "uuid-1")), dm.ErrExists, `dm: create "new": `},
		{"renamed to another", ctl.Rename("there", "no table"), dm.ErrExists, `dm: rename "there": `},
		{"renamed none", ctl.Rename("none", "x"), dm.ErrNotFound, `dm: rename "none": `},
		{"removed none", ctl.Remove("none", dm.RemoveOptions{}), dm.ErrNotFound, `dm: remove "none": `},
		{"info of none", second(ctl.Info("none")), dm.ErrNotFound, `dm: look at "none": `},
		{"a disk", second(ctl.Resolve(disk)), dm.ErrNotFound, disk},
		{"no path", second(ctl.Resolve("/dev/none")), fs.ErrNotExist, "/dev/none"},
		{"no block device", second(ctl.Resolve("/dev/null")), dm.ErrNotFound, "/dev/null"},
		{"no node", second(ctl.Resolve("/dev/mapper/none")), dm.ErrNotFound, `"none"`},
		{"unknown target", load(target(8, "nonesuch", "")), dm.ErrNotSupported, `dm: load table of "no table": target 0 (nonesuch): `},
		{"bad parameters", load(target(8, "linear", "x")), unix.EINVAL, `target 0 (linear): invalid argument; the kernel says: linear: Invalid argument count`},
		{"no such device", load(target(8, "linear", "/dev/none 0")), nil, "the kernel says: linear: Device lookup failed"},
		{"gap", load(target(8, "zero", ""), target(8, "zero", "")), nil, "starts at sector 0, the one before ends at 8"},
		{"foreign metadata", load(target(8, "era", "%s %s 128", disk, disk)), nil, "the kernel says: era: Error reading metadata"},
		{"resumed without a table", errors.Join(second(ctl.Suspend("no table", dm.SuspendOptions{})), second(ctl.Resume("no table"))), unix.EINVAL, "load one first"},
		{"message to none", secondString(ctl.Message("none", 0, "x")), dm.ErrNotFound, `dm: send "x" to "none": `},
		{"message to a deaf target", secondString(ctl.Message("there", 8, "x")), unix.EINVAL, `"there": invalid argument: target 0 (zero)`},
		{"message beyond the end", secondString(ctl.Message("there", 64, "x")), unix.EINVAL, "no target at sector 64"},
		{"unknown target type", secondVersion(ctl.TargetVersion("nonesuch")), dm.ErrNotSupported, "nonesuch"},
	} {
		if x.err == nil || x.want != nil && !errors.Is(x.err, x.want) || !strings.Contains(x.err.Error(), x.text) {
			t.Errorf("%s: %v, want %v with %q", x.what, x.err, x.want, x.text)
		}
	}
}

func second(_ dm.Info, err error) error           { return err }
func secondString(_ string, err error) error      { return err }
func secondVersion(_ dm.Version, err error) error { return err }
