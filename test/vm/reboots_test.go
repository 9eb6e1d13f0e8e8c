package vm

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var rebootRounds = flag.Int("reboot-rounds", 0, "how many clean reboots to make in a row, beside the few of every run; scripts/soak does")

// A Debian has data disks with Btrfs and ext4, of which both are mounted at boot. What is tracked on
// them outlives clean reboots, with writes early in the boot and late in the shutdown; and whatever
// happens between two boots, no write is lost.
func TestTrackingOutlivesReboots(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/reboots")
	command := BuildTidemark(t)
	m := newRebooting(t, Linux612, program, command)
	m.boot(t, program, "btrfs=not saved", "vault=not saved")
	m.boot(t, program, "btrfs=", "vault=")
	for range *rebootRounds {
		m.boot(t, program, "btrfs=", "vault=")
	}
	// A rescue system has mounted one of them.
	m.onHost(t, m.data, func(dev string) {
		at := t.TempDir()
		host(t, "mount", dev, at)
		err := os.WriteFile(at+"/rescued", []byte("by another system"), 0o600)
		host(t, "umount", at)
		if err != nil {
			t.Fatal(err)
		}
	})
	const rescued = "btrfs=somebody used the disk after it was shut down: btrfs at byte 0: generation"
	if *rebootRounds == 0 { // the power is cut in the test of root's disk
		m.boot(t, program, rescued, "vault=")
		return
	}
	m.boot(t, program, rescued, "vault=", "CUT=1")
	m.boot(t, program, "btrfs=not shut down cleanly", "vault=not shut down cleanly")
}

// The disk of root on ext4, in a system with initramfs-tools.
func TestTrackingOfRootOutlivesReboots(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/reboots")
	command := BuildTidemark(t)
	d := NewDebian(t, Linux61, InitramfsTools, program)
	d.InstallTidemark(command)
	const rootPart = "/dev/disk/by-id/virtio-system-part1" // its copy has the same UUIDs
	d.Write("/etc/fstab", rootPart+" / ext4 defaults 0 1\n")
	host(t, command, "boot", "install", "--root", d.Dir, "--track", "/dev/disk/by-id/virtio-system", "--stage", "initramfs")
	initrd := d.initramfs(InitramfsTools)
	host(t, command, "boot", "status", "--root", d.Dir)
	m := &rebooting{kernel: Linux61, disks: []Disk{NewDisk(t, "copy-root", RootStart+RootSize+metaSize+1<<20)}}
	m.start(t, d, initrd, rootPart)
	m.boot(t, program, "root=not saved")
	for range *rebootRounds {
		m.boot(t, program, "root=")
	}
	m.boot(t, program, "root=", "CUT=1")
	m.boot(t, program, "root=not shut down cleanly")
}

// start makes root's disk and that of the state.
func (m *rebooting) start(t *testing.T, d *Debian, initrd, root string) {
	t.Helper()
	m.system, m.root = d.Disk(initrd)
	m.system.Args = "root=" + root + " ro systemd.show_status=0"
	m.state = NewDisk(t, "state", 64<<20)
	host(t, "mkfs.ext4", "-q", m.state.Path)
}

// rebooting is a machine with data disks, and copies of these.
type rebooting struct {
	kernel Kernel
	system System
	root   Disk
	data   Disk   // btrfs
	vault  Disk   // ext4
	disks  []Disk // what else it has: these, and their copies
	state  Disk
	boots  int
}

const dataSize, vaultSize = 128 << 20, 64 << 20

func newRebooting(t *testing.T, k Kernel, program Program, command string) *rebooting {
	d := NewDebian(t, k, Dracut, program)
	d.modulesOf(k, "kernel/fs/btrfs")
	d.InstallTidemark(command)
	d.Write("/etc/fstab", "UUID="+RootUUID+" / ext4 defaults 0 1\n"+
		"/dev/disk/by-id/virtio-data /data btrfs defaults 0 0\n/dev/disk/by-id/virtio-vault /vault ext4 defaults 0 2\n")
	host(t, "mkdir", d.in("data"), d.in("vault"))
	d.writesAtBoth()
	initrd := d.initramfs(Dracut)
	host(t, command, "boot", "install", "--root", d.Dir, "--track", "/dev/disk/by-id/virtio-data", "--track", "/dev/disk/by-id/virtio-vault")
	host(t, command, "boot", "status", "--root", d.Dir)
	m := &rebooting{kernel: k, data: NewDisk(t, "data", dataSize), vault: NewDisk(t, "vault", vaultSize)}
	m.disks = []Disk{m.data, m.vault, NewDisk(t, "copy-btrfs", dataSize), NewDisk(t, "copy-vault", vaultSize)}
	m.start(t, d, initrd, "UUID="+RootUUID)
	host(t, "mkfs.btrfs", "-q", m.data.Path)
	host(t, "mkfs.ext4", "-q", m.vault.Path)
	return m
}

// writesAtBoth makes services that write to the data disks as early in a boot and as late in a
// shutdown as anybody can who needs them mounted.
func (d *Debian) writesAtBoth() {
	d.t.Helper()
	const text = `[Unit]
DefaultDependencies=no
RequiresMountsFor=/data /vault
Before=sysinit.target shutdown.target
Conflicts=shutdown.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'for d in /data /vault; do dd if=/dev/urandom of=$d/early bs=64k count=4 status=none; sync; done'
ExecStop=/bin/sh -c 'for d in /data /vault; do dd if=/dev/urandom of=$d/late bs=64k count=4 status=none; done'
[Install]
WantedBy=sysinit.target
`
	d.Write("/etc/systemd/system/writes.service", text)
	host(d.t, "mkdir", "-p", d.in("etc/systemd/system/sysinit.target.wants"))
	host(d.t, "ln", "-s", "../writes.service", d.in("etc/systemd/system/sysinit.target.wants/writes.service"))
}

// onHost attaches a disk to the host.
func (m *rebooting) onHost(t *testing.T, disk Disk, use func(dev string)) {
	t.Helper()
	dev := strings.TrimSpace(host(t, "losetup", "--find", "--show", disk.Path))
	defer host(t, "losetup", "--detach", dev)
	use(dev)
}

// boot boots once. Want says of each disk why its marks are lost, "" for kept, and CUT that the power is
// cut at the end.
func (m *rebooting) boot(t *testing.T, program Program, want ...string) {
	t.Helper()
	m.boots++
	cut := false
	for _, w := range want {
		cut = cut || w == "CUT=1"
	}
	r := Run(t, Config{
		Kernel: m.kernel, System: &m.system, MemMB: 768, Timeout: bootTimeout,
		Disks: append([]Disk{m.root, m.state}, m.disks...),
		Env:   append(want, fmt.Sprint("BOOT=", m.boots)),
		OnEvent: func(guest *Machine, event string) string {
			if event == "cut" {
				guest.PowerCut()
			}
			return ""
		},
	}, program)
	if testing.Verbose() {
		for line := range strings.Lines(r.Console) {
			if strings.Contains(line, "tidemark") {
				t.Log(strings.TrimSpace(line))
			}
		}
	}
	t.Logf("boot %d: up after %v, all %v", m.boots, r.Boot, r.Total)
	if r.Cut != cut || t.Failed() {
		t.Fatalf("boot %d: cut: %v", m.boots, r.Cut)
	}
}
