//go:build linux

// Package snapstore_test runs in guests only (see package guest): stores of the kernel's
// dm-snapshot, with LVM and without.
package snapstore_test

import (
	"os"
	"testing"

	"tidemark/linux/dm"
	"tidemark/linux/lvm"
	"tidemark/test/vm/guest"
)

func TestMain(m *testing.M) {
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

func TestDetachLeavesNothingBehind(t *testing.T) {
	group(t)
	volume(t, "lv")
	guest.Run(t, "lvcreate", "--quiet", "--snapshot", "--size", "8M", "--chunksize", "4k", "--name", "snap", "vg/lv")
	before := guest.Run(t, "dmsetup", "ls")
	ctl, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer ctl.Close()
	origin, err := lvm.Find(t.Context(), "vg/lv")
	if err != nil {
		t.Fatal(err)
	}
	snap, err := lvm.Find(t.Context(), "/dev/vg/snap")
	if err != nil {
		t.Fatal(err)
	}
	d, err := lvm.Detach(t.Context(), ctl, origin, snap)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v\n%s", d, guest.Run(t, "dmsetup", "table"))
	if err := d.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Log(guest.Run(t, "lvs", "-o+tags"))
	if err := d.Attach(true); err != nil {
		t.Fatal(err)
	}
	if after := guest.Run(t, "dmsetup", "ls"); len(after) != len(before) {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	t.Log(guest.Run(t, "lvs", "-o+tags"))
}
