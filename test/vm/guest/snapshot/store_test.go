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
	guest.Run(t, "mkfs.ext4", "-q", "-F", "-b", "1024", dev)
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
