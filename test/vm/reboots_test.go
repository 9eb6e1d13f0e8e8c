package vm

import (
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidemark/test/vm/wire"
)

var rebootRounds = flag.Int("reboot-rounds", 0, "how many clean reboots to make in a row, beside the few of every run; scripts/soak does")

const unclean = "not shut down cleanly"

// A Debian has root on XFS, an initramfs by dracut, and data disks that are mounted at boot: with Btrfs,
// with LVM, and with LVM on LUKS. What is tracked outlives clean reboots, with writes early in the
// boot and late in the shutdown, and with dracut's own root at the end of one; and whatever happens
// between two boots, no write is lost. Then all files of root go to a disk with ext4, but for /var/lib, and
// another kernel boots from it, with an initramfs by initramfs-tools and a newer systemd. Of LVM on LUKS
// only LUKS is left. User space alone reboots, and the kernel jumps into the next.
func TestTrackingOutlivesReboots(t *testing.T) {
	t.Parallel()
	m := newRebooting(t)
	const first = "not saved"
	r := m.boot("", "root="+first, "btrfs="+first, "vault="+first, "secret="+first, "SHUTDOWN_ROOT=1")
	if !strings.Contains(r.Console, "Unmounted /oldroot") {
		t.Error("the shutdown did not go through dracut's root")
	}
	kept := []string{"root=", "btrfs=", "vault=", "secret="}
	for range *rebootRounds {
		m.boot("", kept...)
	}
	m.mounted("vault", func(at string) { // by a rescue system
		if err := os.WriteFile(at+"/rescued", []byte("by another system"), 0o600); err != nil {
			t.Error(err)
		}
	})
	m.boot(wire.EndPanic, "root=", "btrfs=", "secret=", "vault=somebody used the disk after it was shut down: ext4 at byte 0: ")
	m.toExt4()
	lost := []string{"btrfs=" + unclean, "vault=" + unclean, "secret=" + first}
	m.machine(
		Stage{Env: slices.Concat(lost, []string{"root=it cannot be written past its filesystem", "NEW_ROOT=1"}), End: wire.EndSoft},
		Stage{Env: slices.Concat(kept, []string{"SOFT=1", "KEXEC=1"}), End: wire.EndKexec},
		Stage{Env: kept})
	for range *rebootRounds {
		m.machine(Stage{Env: kept, End: wire.EndSoft}, Stage{Env: slices.Concat(kept, []string{"SOFT=1"})})
	}
	if *rebootRounds > 0 {
		lost[2] = "secret=" + unclean
		lost = append(lost, "root="+unclean)
		m.boot(wire.EndReset, kept...)
		m.boot("", slices.Concat(lost, []string{"CUT=1"})...)
		m.boot("", lost...)
	}
}

// rebooting is a machine with disks that are tracked over reboots, and copies of these.
type rebooting struct {
	*Debian
	t       *testing.T
	cache   cache
	program Program
	kernel  Kernel
	system  System
	disks   map[string]Disk
	boots   int
	second  struct{ initrd, modules string } // the other kernel's, out of the system
}

const (
	rootDisk    = "/dev/disk/by-id/virtio-system-part1" // its copy has the same UUIDs
	volume      = 32 << 20                              // bytes of each logical volume
	volumeStart = 1 << 20                               // where LVM puts the first one on a disk
)

func newRebooting(t *testing.T) *rebooting {
	t.Helper()
	m := &rebooting{t: t, program: Build(t, "tidemark/test/vm/guest/reboots"), kernel: Linux612, disks: map[string]Disk{}}
	m.Debian = newDebian(t, m.program)
	var err error
	if m.cache, err = openCache(); err != nil {
		t.Fatal(err)
	}
	// A disk that is late because the machine is busy is not missing.
	m.Write("/etc/systemd/system.conf", "[Manager]\nDefaultDeviceTimeoutSec=infinity\n")
	// Where something is amiss the console says what, and the machine ends.
	m.Write("/etc/systemd/system/emergency.service", "[Unit]\nDefaultDependencies=no\nConflicts=shutdown.target\n[Service]\nStandardOutput=tty\nTTYPath=/dev/console\nExecStart=/bin/sh -c 'journalctl --boot --output=short-monotonic; reboot -f'\n")
	host(t, "mkdir", m.in("data"), m.in("vault"), m.in("secret"))
	m.Write("/etc/fstab", rootDisk+` / xfs defaults 0 1
/dev/disk/by-id/virtio-btrfs /data btrfs defaults 0 2
`)
	m.writesAtBoth("/data", "/vault", "/secret", "/root")

	host(t, "mkfs.btrfs", "-q", m.data("btrfs", 128<<20, 128<<20).Path)
	// The first boot makes LUKS, LVM and filesystems.
	m.data("vault", volumeStart+volume+4<<20, volume)
	m.data("secret", volume+24<<20, volume+8<<20) // the first 16 MiB are LUKS's own
	command := BuildTidemark(t)
	m.InstallTidemark(command)
	for _, args := range [][]string{{"btrfs"}, {"system", "--stage", "initramfs"}} {
		host(t, command, append([]string{"boot", "install", "--root", m.Dir, "--track", "/dev/disk/by-id/virtio-" + args[0]}, args[1:]...)...)
	}
	m.images(command)
	m.lvm2()
	m.root(m.disk(m.xfs))
	return m
}

// data adds a data disk, and one for a copy of what is tracked on it.
func (m *rebooting) data(name string, size, tracked int64) Disk {
	m.t.Helper()
	m.disks[name], m.disks["copy-"+name] = NewDisk(m.t, name, size), NewDisk(m.t, "copy-"+name, tracked)
	return m.disks[name]
}

// root replaces root's disk, and by another disk its copy, which begins as one: the first mirror is quicker
// then.
func (m *rebooting) root(disk Disk) {
	m.t.Helper()
	copied := NewDisk(m.t, string(m.kernel)+"-copy-root", RootStart+RootSize+metaSize+1<<20)
	host(m.t, "cp", "--sparse=always", disk.Path, copied.Path)
	m.disks["root"], m.disks["copy-root"] = disk, copied
}

// images installs two kernels, and makes the initramfs of each by its own generator. That of dracut is
// also the root that a shutdown goes to.
func (m *rebooting) images(command string) {
	m.t.Helper()
	m.Debian.kernel(Linux61, "kernel/fs/btrfs")
	second := m.initramfs(InitramfsTools)
	m.second.modules = m.out("usr/lib/modules/" + m.Release)
	m.Debian.kernel(m.kernel, "kernel/fs/btrfs", "kernel/fs/xfs")
	first := m.initramfs(Dracut)
	host(m.t, command, "boot", "status", "--root", m.Dir)
	m.second.initrd, m.system.Initrd = m.out(second), m.out(first)
	m.system.Args = "root=" + rootDisk + " ro systemd.show_status=0 rd.shell=0 rd.emergency=reboot"
	kept := m.t.TempDir()
	host(m.t, "cp", m.system.Initrd, kept+"/initrd")
	host(m.t, "ln", "-s", "/srv/initrd", m.in("usr/lib/modules/"+m.Release+"/initrd"))
	host(m.t, "cp", m.second.initrd, kept+"/next-initrd") // to jump into
	host(m.t, "cp", filepath.Join(m.cache.kernel(Linux61), "vmlinux"), kept+"/next")
	state := NewDisk(m.t, "state", 256<<20)
	host(m.t, "mkfs.ext4", "-q", "-d", kept, state.Path)
	m.disks["state"] = state
}

// lvm2 installs the rig's LVM and cryptsetup as Debian's packages do. An initramfs that was made before
// has nothing of them.
func (m *rebooting) lvm2() {
	m.t.Helper()
	const lib = "usr/lib/x86_64-linux-gnu/"
	for _, name := range [...]string{
		"sbin/lvm", "sbin/cryptsetup", "sbin/blkdeactivate", "lib/udev/rules.d/56-lvm.rules", "lib/udev/rules.d/69-lvm.rules",
		"lib/systemd/system/blk-availability.service", "etc/lvm/lvm.conf",
		"lib/x86_64-linux-gnu/libdevmapper-event.so.1.02.1", lib + "libedit.so.2", lib + "libbsd.so.0", lib + "libaio.so.1", lib + "libpopt.so.0",
	} {
		host(m.t, "mkdir", "-p", filepath.Dir(m.in(name)))
		host(m.t, "cp", "--dereference", "--preserve=mode", filepath.Join(m.cache.tree(), name), m.in(name))
	}
	host(m.t, "ln", "-s", "/lib/systemd/system/blk-availability.service", m.in("etc/systemd/system/sysinit.target.wants/blk-availability.service"))
}

// newer installs a newer systemd, which can reboot user space alone.
func (m *rebooting) newer() {
	m.t.Helper()
	host(m.t, "cp", "-a", filepath.Join(m.cache.dir, "newer")+"/.", m.Dir)
	// This unit deactivates volumes before such a reboot, and no event activates them after that.
	const dropIn = "/etc/systemd/system/blk-availability.service.d"
	host(m.t, "mkdir", m.in(dropIn))
	m.Write(dropIn+"/soft-reboot.conf", "[Service]\nExecStart=/sbin/lvm vgchange -aay\n")
}

// writesAtBoth makes a service that writes to all disks, in these folders, as early in a boot and as late
// in a shutdown as anybody can who needs them mounted.
func (m *rebooting) writesAtBoth(folders ...string) {
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
	m.Write("/etc/systemd/system/writes.service", strings.ReplaceAll(text, "@", strings.Join(folders, " ")))
	host(m.t, "mkdir", "-p", m.in("etc/systemd/system/sysinit.target.wants"))
	host(m.t, "ln", "-s", "../writes.service", m.in("etc/systemd/system/sysinit.target.wants/writes.service"))
}

// mounted mounts a disk with one filesystem, or root's, on the host.
func (m *rebooting) mounted(name string, use func(at string)) {
	m.t.Helper()
	disk, start, options := m.disks[name], int64(0), "rw"
	size := fileSize(m.t, disk.Path)
	switch name {
	case "root":
		start, size, options = RootStart, RootSize, "nouuid" // as in Debian.xfs
	case "vault":
		start, size = volumeStart, volume
	}
	onHost(m.t, disk, start, size, func(dev string) {
		at := m.t.TempDir()
		host(m.t, "mount", "-o", options, dev, at)
		defer host(m.t, "umount", at)
		use(at)
	})
}

// toExt4 replaces root's disk by one with ext4 and the same files, for the other kernel, and with a /var/lib
// that is a filesystem of its own. The one before was not shut down cleanly, and so has nothing to
// take up.
func (m *rebooting) toExt4() {
	m.t.Helper()
	m.mounted("root", func(at string) {
		m.Dir = at
		const saved, onRoot = "var/lib/tidemark/tracking", "etc/tidemark/tracking" // see package boot
		raw, err := filepath.Glob(m.in(saved + "/*.raw"))
		if err != nil || len(raw) != 1 {
			m.t.Fatalf("the files for what is saved of root are %q, %v", raw, err)
		}
		content, err := os.ReadFile(raw[0])
		if err != nil || binary.LittleEndian.Uint64(content[40:]) != 0 { // see package rawfile
			m.t.Errorf("after a panic there is a record of root, %v", err)
		}
		fstab, err := os.ReadFile(m.in("etc/fstab"))
		if err != nil {
			m.t.Fatal(err)
		}
		m.disks["lib"] = NewDisk(m.t, "lib", 64<<20)
		host(m.t, "mkfs.ext4", "-q", "-d", m.in("var/lib"), m.disks["lib"].Path)
		m.Write("/etc/fstab", strings.Replace(string(fstab), " / xfs ", " / ext4 ", 1)+"/dev/disk/by-id/virtio-lib /var/lib ext4 defaults 0 0\n")
		host(m.t, "cp", "-a", m.in(saved), m.in(onRoot))
		m.newer()
		host(m.t, "rm", "-r", m.in("usr/lib/modules/"+m.Release))
		host(m.t, "cp", "-a", m.second.modules, m.in("usr/lib/modules"))
		m.kernel, m.system.Initrd = Linux61, m.second.initrd
		m.root(m.disk(m.ext4))
	})
}

// boot boots once, and ends so (wire.Job). Want says of each disk why its marks are lost, "" for kept, and
// CUT=1 that the power is cut at the end.
func (m *rebooting) boot(end string, want ...string) Result {
	m.t.Helper()
	return m.machine(Stage{Env: want, End: end})
}

// machine boots, and again as often as there are stages. What each wants is as for boot.
func (m *rebooting) machine(stages ...Stage) Result {
	t := m.t
	t.Helper()
	for i := range stages {
		m.boots++
		stages[i].Env = slices.Concat(stages[i].Env, []string{fmt.Sprint("BOOT=", m.boots)})
		if m.kernel == Linux61 {
			stages[i].Env = append(stages[i].Env, "STILL=1")
		}
		if i > 0 {
			stages[i-1].Next = &stages[i]
		}
	}
	first, last := stages[0], stages[len(stages)-1]
	disks := []Disk{m.disks["root"]}
	for _, name := range [...]string{"copy-root", "state", "btrfs", "copy-btrfs", "vault", "copy-vault", "secret", "copy-secret"} {
		disks = append(disks, m.disks[name])
	}
	if lib, there := m.disks["lib"]; there {
		disks = append(disks, lib)
	}
	r := Run(t, Config{
		Kernel: m.kernel, System: &m.system, MemMB: 768, Timeout: bootTimeout, Disks: disks, Tests: "^TestBoot$", Env: first.Env, End: first.End, Next: first.Next,
		OnEvent: func(guest *Machine, event string) string {
			if name, ok := strings.CutPrefix(event, "compare "); ok {
				start, size := int64(0), fileSize(t, m.disks[name].Path)
				if name == "vault" {
					start, size = volumeStart, volume
				}
				return compareImages(m.disks[name].Path, start, m.disks["copy-"+name].Path, size)
			}
			guest.PowerCut()
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
	if r.Cut != slices.Contains(last.Env, "CUT=1") || t.Failed() {
		t.Fatalf("boot %d: cut: %v", m.boots, r.Cut)
	}
	return r
}
