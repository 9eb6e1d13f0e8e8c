//go:build linux

// Package snapstore_test runs in guests only (see package guest): stores of the kernel's
// dm-snapshot, with LVM and without.
package snapstore_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"tidemark/linux/dmsnap"
	"tidemark/linux/fsfreeze"
	"tidemark/linux/reexec"
	"tidemark/test/vm/guest"
)

func TestMain(m *testing.M) {
	reexec.Main(fsfreeze.Watchdog)
	if guest.Inside() {
		if err := configure(); err != nil {
			panic(err)
		}
	}
	guest.Main(m)
}

// configure tells lvm2 that there is no udev.
func configure() error {
	if err := os.MkdirAll("/etc/lvm", 0o755); err != nil {
		return err
	}
	const conf = "activation { udev_sync=0 udev_rules=0 monitoring=0 }\ndevices { use_devicesfile=0 }\nglobal { use_lvmpolld=0 }\n"
	return os.WriteFile("/etc/lvm/lvm.conf", []byte(conf), 0o644)
}

// group makes a volume group of the guest's disk, and removes it at the end of the test.
func group(t *testing.T) {
	t.Helper()
	guest.Modprobe(t, "dm-snapshot")
	guest.Run(t, "vgcreate", "--quiet", "vg", guest.Disk(t, "data"))
	t.Cleanup(func() { guest.Run(t, "vgremove", "--quiet", "--force", "vg") })
}

// volume makes a volume with random content.
func volume(t *testing.T, name string) string {
	t.Helper()
	guest.Run(t, "lvcreate", "--quiet", "--zero", "n", "--wipesignatures", "n", "--size", "16M", "--name", name, "vg")
	path := "/dev/vg/" + name
	d := guest.OpenDirect(t, path)
	buf := make([]byte, 1<<20)
	for at := int64(0); at < d.Size(); at += int64(len(buf)) {
		guest.Scramble(buf)
		if _, err := d.WriteAt(buf, at); err != nil {
			t.Fatal(err)
		}
	}
	d.Close()
	return path
}

// Stores and origins that the kernel has in use are refused by name, and those that it has let go
// of are not.
func TestWhatIsLiveIsRefused(t *testing.T) {
	group(t)
	lv := volume(t, "lv")
	snapped(t, "8M")
	const real, store, snap = "/dev/mapper/vg-lv-real", "/dev/mapper/vg-snap-cow", "/dev/mapper/vg-snap"
	refused := func(err error, words string) {
		t.Helper()
		if !errors.Is(err, dmsnap.ErrLive) || !strings.Contains(err.Error(), words) {
			t.Errorf("%v, want %q", err, words)
		}
	}
	refused(dmsnap.StoreUnused(store), snap+": LVM has it active: name the volumes with --lv and --snapshot")
	refused(dmsnap.OriginUnused(real), snap+" would change with it")
	for _, err := range []error{
		dmsnap.StoreUnused(lv), dmsnap.StoreUnused(guest.Disk(t, "data")), dmsnap.OriginUnused(snap),
		dmsnap.OriginUnused(lv), // the kernel copies what is written through it
	} {
		if err != nil {
			t.Error(err)
		}
	}
	disk := guest.Mapper(t, "copy", "0 16384 linear "+store+" 0")
	if err := errors.Join(dmsnap.StoreUnused(disk), dmsnap.OriginUnused(disk)); err != nil {
		t.Error(err)
	}

	// A file with a loop device over it, and no LVM.
	file := filepath.Join(t.TempDir(), "store")
	guest.Run(t, "truncate", "-s", "4M", file)
	loop := guest.Loop(t, file)
	origin := guest.Mapper(t, "below", "0 8192 linear "+lv+" 0")
	guest.Run(t, "dmsetup", "create", "bare", "--table", "0 8192 snapshot "+origin+" "+loop+" P 8")
	refused(dmsnap.StoreUnused(file), `"dmsetup remove bare" ends it, and leaves the store`)
	refused(dmsnap.StoreUnused(loop), "/dev/mapper/bare")
	guest.Run(t, "dmsetup", "remove", "bare")
	guest.Mapper(t, "above", "0 8192 snapshot-origin "+origin)
	refused(dmsnap.OriginUnused(origin), "it lies below /dev/mapper/above")
	if err := dmsnap.StoreUnused(file); err != nil {
		t.Error(err)
	}
	guest.Mapper(t, "bare", "0 8192 snapshot-merge "+origin+" "+loop+" P 8")
	refused(dmsnap.StoreUnused(file), "the kernel merges it into /dev/mapper/bare")
	refused(dmsnap.OriginUnused("/dev/mapper/bare"), "the kernel merges a store into it")
}

// rounds is how often a random test goes round: more often in make soak.
func rounds(t *testing.T, few int) int {
	t.Helper()
	if many, err := strconv.Atoi(os.Getenv("ROUNDS")); err == nil && many > 0 {
		return many
	}
	return few
}
