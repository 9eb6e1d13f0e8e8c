package vm

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"tidemark/test/vm/wire"
)

var rebootRounds = flag.Int("reboot-rounds", 0, "how many clean reboots to make in a row, beside the few of every run; scripts/soak does")

const unclean = "not shut down cleanly"

// A Debian has root on XFS, and data disks with Btrfs and ext4 that are mounted at boot. What is tracked
// outlives clean reboots, with writes early in the boot and late in the shutdown, and with dracut's own
// root at the end of one; and whatever happens between two boots, no write is lost.
func TestTrackingOutlivesReboots(t *testing.T) {
	t.Parallel()
	d := newRebooting(t, Linux612, Dracut, "kernel/fs/btrfs", "kernel/fs/xfs")
	btrfs, vault := d.data("btrfs", "/data", "btrfs", 128<<20), d.data("vault", "/vault", "ext4", 64<<20)
	host(t, "mkfs.btrfs", "-q", btrfs.Path)
	host(t, "mkfs.ext4", "-q", vault.Path)
	m := d.start("xfs")
	const first = "not saved"
	r := m.boot("", "root="+first, "btrfs="+first, "vault="+first, "SHUTDOWN_ROOT=1")
	if !strings.Contains(r.Console, "Unmounted /oldroot") {
		t.Error("the shutdown did not go through dracut's root")
	}
	kept := []string{"root=", "btrfs=", "vault="}
	for range *rebootRounds {
		m.boot("", kept...)
	}
	if *rebootRounds > 0 {
		m.boot(wire.EndKexec, kept...) // every run has one in the test below
	}
	m.onHost(vault, func(dev string) { // a rescue system
		at := t.TempDir()
		host(t, "mount", dev, at)
		err := os.WriteFile(at+"/rescued", []byte("by another system"), 0o600)
		host(t, "umount", at)
		if err != nil {
			t.Fatal(err)
		}
	})
	m.boot(wire.EndPanic, "root=", "btrfs=", "vault=somebody used the disk after it was shut down: ext4 at byte 0: ")
	lost := []string{"root=" + unclean, "btrfs=" + unclean, "vault=" + unclean}
	if *rebootRounds > 0 {
		m.boot(wire.EndReset, lost...)
		m.boot("", slices.Concat(lost, []string{"CUT=1"})...)
	}
	m.boot("", lost...)
}

// The disk of root on ext4, in a system with initramfs-tools.
func TestTrackingOfRootOutlivesReboots(t *testing.T) {
	t.Parallel()
	m := newRebooting(t, Linux61, InitramfsTools).start("ext4")
	m.boot(wire.EndKexec, "root=not saved")
	if *rebootRounds == 0 {
		m.boot("", "root=")
		return
	}
	for range *rebootRounds {
		m.boot("", "root=")
	}
	m.boot(wire.EndReset, "root=")
	m.boot("", "root="+unclean, "CUT=1")
	m.boot("", "root="+unclean)
}

// rebooting is a machine with disks that are tracked over reboots, and copies of these.
type rebooting struct {
	*Debian
	t         *testing.T
	kernel    Kernel
	generator Generator
	program   Program
	command   string
	fstab     string
	tracked   []string // names of the data disks
	folders   []string // on each disk, that are written to early and late
	system    System
	disks     []Disk // after the start, root's is the first
	boots     int
}

func newRebooting(t *testing.T, k Kernel, g Generator, modules ...string) *rebooting {
	t.Helper()
	m := &rebooting{
		t: t, kernel: k, generator: g,
		program: Build(t, "tidemark/test/vm/guest/reboots"), command: BuildTidemark(t),
	}
	m.Debian = NewDebian(t, k, g, m.program)
	if len(modules) > 0 {
		m.modulesOf(k, modules...)
	}
	m.InstallTidemark(m.command)
	// Where the kernel has nothing to jump into, systemd calls it all the same.
	m.Write("/sbin/kexec", "#!/bin/sh\necho rig: kexec \"$@\" >/dev/console\nexec reboot -f -f\n")
	host(t, "chmod", "755", m.in("sbin/kexec"))
	return m
}

// data adds a data disk that is tracked and mounted.
func (m *rebooting) data(name, at, filesystem string, size int64) Disk {
	m.t.Helper()
	disk := NewDisk(m.t, name, size)
	m.tracked, m.folders = append(m.tracked, name), append(m.folders, at)
	m.disks = append(m.disks, disk, NewDisk(m.t, "copy-"+name, size))
	host(m.t, "mkdir", m.in(at))
	m.fstab += fmt.Sprintf("/dev/disk/by-id/virtio-%s %s %s defaults 0 2\n", name, at, filesystem)
	return disk
}

// start has root's disk and the data disks tracked, and makes root's disk with that filesystem.
func (m *rebooting) start(filesystem string) *rebooting {
	m.t.Helper()
	const root = "/dev/disk/by-id/virtio-system-part1" // its copy has the same UUIDs
	m.Write("/etc/fstab", root+" / "+filesystem+" defaults 0 1\n"+m.fstab)
	m.writesAtBoth()
	for _, name := range m.tracked {
		host(m.t, m.command, "boot", "install", "--root", m.Dir, "--track", "/dev/disk/by-id/virtio-"+name)
	}
	host(m.t, m.command, "boot", "install", "--root", m.Dir, "--track", "/dev/disk/by-id/virtio-system", "--stage", "initramfs")
	initrd := m.initramfs(m.generator)
	host(m.t, m.command, "boot", "status", "--root", m.Dir)
	kept := m.t.TempDir()
	if m.generator == Dracut { // for the root that it shuts down from
		host(m.t, "cp", m.in(initrd), kept+"/initrd")
		host(m.t, "ln", "-s", "/srv/initrd", m.in("usr/lib/modules/"+m.Release+"/initrd"))
	}
	fill := m.ext4
	if filesystem == "xfs" {
		fill = m.xfs
	}
	var disk Disk
	m.system, disk = m.diskOf(initrd, fill)
	m.system.Args = "root=" + root + " ro systemd.show_status=0 rd.shell=0 rd.emergency=reboot"
	state := NewDisk(m.t, "state", 128<<20)
	host(m.t, "mkfs.ext4", "-q", "-d", kept, state.Path)
	copied := NewDisk(m.t, "copy-root", RootStart+RootSize+metaSize+1<<20)
	host(m.t, "cp", "--sparse=always", disk.Path, copied.Path) // the first mirror is quicker
	m.disks = append([]Disk{disk, copied, state}, m.disks...)
	return m
}

// writesAtBoth makes a service that writes to all disks as early in a boot and as late in a shutdown as
// anybody can who needs them mounted.
func (m *rebooting) writesAtBoth() {
	m.t.Helper()
	const text = `[Unit]
DefaultDependencies=no
RequiresMountsFor=@
After=systemd-remount-fs.service
Before=sysinit.target shutdown.target
Conflicts=shutdown.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'for d in @; do dd if=/dev/urandom of=$d/early bs=64k count=4 status=none; done; sync'
ExecStop=/bin/sh -c 'for d in @; do dd if=/dev/urandom of=$d/late bs=64k count=4 status=none; done'
`
	m.Write("/etc/systemd/system/writes.service", strings.ReplaceAll(text, "@", strings.Join(append(m.folders, "/root"), " ")))
	host(m.t, "mkdir", "-p", m.in("etc/systemd/system/sysinit.target.wants"))
	host(m.t, "ln", "-s", "../writes.service", m.in("etc/systemd/system/sysinit.target.wants/writes.service"))
}

// onHost attaches a disk to the host.
func (m *rebooting) onHost(disk Disk, use func(dev string)) {
	m.t.Helper()
	dev := strings.TrimSpace(host(m.t, "losetup", "--find", "--show", disk.Path))
	defer host(m.t, "losetup", "--detach", dev)
	use(dev)
}

// boot boots once, and ends so (wire.Job). Want says of each disk why its marks are lost, "" for kept, and
// CUT=1 that the power is cut at the end.
func (m *rebooting) boot(end string, want ...string) Result {
	t := m.t
	t.Helper()
	m.boots++
	r := Run(t, Config{
		Kernel: m.kernel, System: &m.system, MemMB: 768, Timeout: bootTimeout, Disks: m.disks, End: end,
		Env: slices.Concat(want, []string{fmt.Sprint("BOOT=", m.boots)}),
		OnEvent: func(guest *Machine, event string) string {
			if event == "cut" {
				guest.PowerCut()
			}
			return ""
		},
	}, m.program)
	if testing.Verbose() {
		for line := range strings.Lines(r.Console) {
			if strings.Contains(line, "tidemark") {
				t.Log(strings.TrimSpace(line))
			}
		}
	}
	t.Logf("boot %d: up after %v, all %v", m.boots, r.Boot, r.Total)
	if r.Cut != slices.Contains(want, "CUT=1") || t.Failed() {
		t.Fatalf("boot %d: cut: %v", m.boots, r.Cut)
	}
	if end == wire.EndKexec && !strings.Contains(r.Console, "rig: kexec -e") {
		t.Errorf("boot %d did not end by kexec", m.boots)
	}
	return r
}
