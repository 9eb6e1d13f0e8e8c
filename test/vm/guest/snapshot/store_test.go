//go:build linux

package snapshot_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/snapshot"
	"tidemark/test/vm/guest"
	"tidemark/test/vm/guest/instant"
)

// refused runs "snapshot create", which has to refuse.
func refused(t *testing.T, want string, args ...string) {
	t.Helper()
	out, err := exec.Command("tidemark", append([]string{"snapshot", "create", "--max-freeze", "1m"}, args...)...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), want) {
		t.Errorf("%v: %v, want %q: %s", args, err, want, out)
	}
}

// A store inside lies at the top of its filesystem, however that is mounted, and is found there in
// whatever order it is mounted at the next boot; one on btrfs, which moves blocks, is refused.
func TestAStoreInsideIsFoundAgain(t *testing.T) {
	name, at := origin(t, 0, "ext4")
	dev, part := "/dev/mapper/"+name, t.TempDir()
	if err := os.Mkdir(at+"/sub", 0o700); err != nil {
		t.Fatal(err)
	}
	// Only a part of it is mounted, before all of it.
	guest.Run(t, "mount", "--bind", at+"/sub", part)
	guest.Run(t, "umount", at)
	refused(t, "no mount shows all of it", dev)
	guest.Run(t, "mount", dev, at)
	create(t, "--name", "i", dev)
	if left, _ := filepath.Glob(at + "/.tidemark-i"); len(left) != 1 {
		t.Error("the store is not at the top of the filesystem")
	}
	bootAgain(t)
	guest.Run(t, "umount", at)
	if out, err := exec.Command("tidemark", "snapshot", "repair").CombinedOutput(); err == nil || !strings.Contains(string(out), "no mount shows all of it") {
		t.Errorf("%v: %s", err, out)
	}
	guest.Run(t, "mount", dev, at)
	// The snapshot's devices of "before the boot" are still there in this guest.
	takeDown(t, name, "i")
	guest.Run(t, "tidemark", "snapshot", "repair")
	guest.Run(t, "umount", part)
	bare(t, at)
	guest.Run(t, "umount", at)
	mkfs(t, "btrfs", dev)
	guest.Run(t, "mount", dev, at)
	refused(t, "may move the blocks", dev)
	bare(t, at)
}

// takeDown removes the devices of a snapshot as the end of a boot does, and leaves its origin.
func takeDown(t *testing.T, name, snap string) {
	t.Helper()
	table := guest.Run(t, "dmsetup", "table", name+"+real")
	guest.Run(t, "dmsetup", "remove", "--retry", name+"+"+snap)
	guest.Run(t, "dmsetup", "remove", "--retry", name+"+"+snap+"+snap")
	guest.Run(t, "dmsetup", "load", name, "--table", table)
	guest.Run(t, "dmsetup", "resume", name)
	guest.Run(t, "dmsetup", "remove", "--retry", name+"+"+snap+"+cow")
	guest.Run(t, "dmsetup", "remove", "--retry", name+"+real")
}

// A store in a file elsewhere is removed after a boot when its filesystem is there, and not before;
// what has its name by then and is another file stays.
func TestAStoreElsewhereIsFoundAgain(t *testing.T) {
	name, at := origin(t, 0, "ext4")
	other, there := origin(t, 1, "ext4")
	dev, store := "/dev/mapper/"+name, there+"/store"
	_, err := snapshot.Create(t.Context(), options, snapshot.Request{Persistent: true, MaxFreeze: time.Minute, Devices: []snapshot.Device{{Path: dev, Store: store}}})
	if !errors.Is(err, snapshot.ErrNotKept) || !strings.Contains(err.Error(), "leave --store out, or give a disk") {
		t.Errorf("a persistent one: %v", err)
	}
	create(t, "--name", "e", "--store", store, dev)
	takeDown(t, name, "e")
	bootAgain(t)
	guest.Run(t, "umount", there)
	if out, err := exec.Command("tidemark", "snapshot", "repair").CombinedOutput(); err == nil || !strings.Contains(string(out), "its filesystem is not there, another one covers it") {
		t.Errorf("%v: %s", err, out)
	}
	guest.Run(t, "mount", "/dev/mapper/"+other, there)
	if _, err := os.Stat(store); err != nil {
		t.Error(err)
	}
	guest.Run(t, "tidemark", "snapshot", "repair")
	if _, err := os.Stat(store); err == nil {
		t.Error("the store is still there")
	}
	bare(t, at, there)

	create(t, "--name", "e", "--store", store, dev)
	takeDown(t, name, "e")
	guest.Run(t, "mv", store, there+"/moved")
	guest.WriteFile(t, store, "somebody else's")
	record := options.StateDir + "/snapshots/e.json"
	content, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	guest.WriteFile(t, record, strings.Replace(string(content), "00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000001", 1))
	guest.Run(t, "tidemark", "snapshot", "repair")
	if got, err := os.ReadFile(store); err != nil || string(got) != "somebody else's" {
		t.Errorf("%q, %v", got, err)
	}
	bare(t, at, there)
}

// A small store in a filesystem of small blocks, which lies in pieces, works as far as its whole
// chunks go, and where it does not the reason is told.
func TestASmallStoreInPieces(t *testing.T) {
	name, at := origin(t, 0, "ext4")
	dev := "/dev/mapper/" + name
	guest.Run(t, "umount", at)
	guest.Run(t, "mkfs.ext4", "-q", "-F", "-b", "1024", "-E", "lazy_itable_init=0", dev)
	guest.Run(t, "mount", dev, at)
	refused(t, "less than 8 chunks", "--size", "48K", dev)
	s, held := take(t, snapshot.Request{Devices: []snapshot.Device{{Path: dev, Size: 2 << 20}}})
	guest.Run(t, "dd", "if=/dev/urandom", "of="+at+"/file", "bs=4k", "count=4", "conv=fsync", "status=none")
	instant.Compare(t, held[0], instant.MustRead(t, s.Image(s.Volumes[0])))
	destroy(t, s)
	n := 0
	for ; allocate(fmt.Sprint(at, "/", n)) == nil; n++ {
	}
	for i := 0; i < n; i += 2 {
		if err := os.Remove(fmt.Sprint(at, "/", i)); err != nil {
			t.Fatal(err)
		}
	}
	unix.Sync()
	refused(t, "are whole chunks of 256 KiB", "--chunk", "256K", "--size", "4M", "--reserve", "1M", dev)
	bare(t, at)
}

// allocate makes a file of 64 KiB.
func allocate(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, 64<<10), f.Close())
}

// Parts of an unused disk, and memory, are stores as others, which are given back; what may be in use is
// refused. Without a size a store has room for what changed lately.
func TestStoresOfPartsAndInMemory(t *testing.T) {
	name, at := origin(t, 0, "ext4")
	dev, disk := "/dev/mapper/"+name, guest.Disk(t, "store")
	if _, err := os.Stat("/sys/class/zram-control"); err != nil {
		refused(t, "modprobe zram", "--store", "zram", dev)
	}
	guest.Modprobe(t, "zram")
	guest.Run(t, "dd", "if=/dev/zero", "of="+disk, "bs=1M", "count=16", "status=none", "conv=fsync")
	refused(t, "overlap", "--store", disk+":0+8M,"+disk+":7M+1M", dev)
	refused(t, "whole sectors", "--store", disk+":100+8M", dev)
	refused(t, "whole sectors", "--store", disk+":12M+8M", dev)
	refused(t, "are asked for", "--store", disk+":0+8M", "--size", "9M", dev)
	refused(t, "device or resource busy", "--store", guest.Disk(t, "data")+":100M+8M", dev)
	refused(t, "want DEVICE:START+LENGTH", "--store", disk+":0+8M,", dev)
	refused(t, "there is no device /dev/nothing", "--store", "/dev/nothing", dev)
	refused(t, "of memory are free", "--store", "zram", "--size", "1T", dev)
	bare(t, at)

	before, _ := filepath.Glob("/sys/block/zram*")
	stop := instant.Load(t, at)
	defer stop()
	for _, d := range []snapshot.Device{
		{Ranges: []snapshot.Range{{Path: disk, Off: 8 << 20, Len: 7 << 20}, {Path: disk, Len: 7 << 20}}},
		{Store: snapshot.Zram, Size: 14 << 20},
	} {
		d.Path = dev
		s, held := take(t, snapshot.Request{Devices: []snapshot.Device{d}})
		settle(t, name)
		instant.Compare(t, held[0], instant.MustRead(t, s.Image(s.Volumes[0])))
		check(t, "ext4", s.Image(s.Volumes[0]))
		if d.Store == snapshot.Zram { // a command that was cut off
			record := options.StateDir + "/snapshots/" + s.Name + ".json"
			content, err := os.ReadFile(record)
			if err != nil {
				t.Fatal(err)
			}
			guest.WriteFile(t, record, strings.Replace(string(content), `"up": true`, `"up": false`, 1))
			guest.Run(t, "tidemark", "snapshot", "repair")
		} else {
			destroy(t, s)
		}
		bare(t, at)
	}
	stop()
	if after, _ := filepath.Glob("/sys/block/zram*"); len(after) != len(before) {
		t.Errorf("%v, and before %v", after, before)
	}

	create := func(want string, args ...string) {
		t.Helper()
		out, err := exec.Command("tidemark", append([]string{"snapshot", "create", "--max-freeze", "1m"}, args...)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%v: %v, want %q: %s", args, err, want, out)
		}
	}
	create("has 4.0 MiB, a tenth of it", "--name", "a", "--track", dev)
	guest.Run(t, "dd", "if=/dev/urandom", "of="+at+"/more", "bs=1M", "count=6", "conv=fsync", "status=none")
	create("as much as changed since", "--name", "c", "--store", "/stores-c", dev)
	guest.Run(t, "tidemark", "snapshot", "destroy", "a", "c")
	bare(t, at)
}
