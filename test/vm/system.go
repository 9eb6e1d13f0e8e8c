package vm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/boot"
	"tidemark/test/vm/wire"
)

// System is a system of its own that a guest boots: its root is on one of the guest's
// disks, and its initramfs was made by the system's own programs. Its tests run as a
// service, after which it shuts down.
type System struct {
	Initrd string // initramfs on the host
	Args   string // for the kernel: "root=…"
}

// Generator is a program that makes a system's initramfs.
type Generator string

// The generators of the rig's Debian.
const (
	InitramfsTools Generator = "initramfs-tools"
	Dracut         Generator = "dracut"
)

// The disk of a Debian: GPT, root first, then the metadata of an era device.
const (
	RootPartUUID = "7d1a9c52-5f0e-4a51-9d1b-1f6d3c2a7e01"
	MetaPartUUID = "7d1a9c52-5f0e-4a51-9d1b-1f6d3c2a7e02"
	RootUUID     = "7d1a9c52-5f0e-4a51-9d1b-1f6d3c2a7e03" // of root's filesystem
	RootStart    = 1 << 20                                // bytes
	RootSize     = 208 << 20                              // bytes
	metaSize     = 4 << 20
)

// kept are the folders of a kernel's modules that the guests need. With all of them
// making an initramfs takes long, and so does a boot: each device of the guest that a
// module is for makes the emulated processor load it.
var kept = [...]string{
	"kernel/block", "kernel/crypto", "kernel/lib", "kernel/mm",
	"kernel/drivers/block", "kernel/drivers/virtio", "kernel/drivers/md", "kernel/drivers/scsi",
	"kernel/drivers/char", "kernel/drivers/dax",
	"kernel/fs/ext4", "kernel/fs/jbd2", "kernel/fs/mbcache.ko", "kernel/fs/autofs", "kernel/fs/configfs",
	"kernel/fs/fuse", "kernel/fs/nls",
}

// service runs the tests once the system is up, and then shuts down.
const service = `[Unit]
Description=the guest's tests
After=multi-user.target
SuccessAction=reboot
FailureAction=reboot
[Service]
Type=oneshot
ExecStart=/rig/init service
StandardOutput=journal+console
StandardError=journal+console
Environment=HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin
TimeoutStartSec=infinity
`

// Debian is a system that is being put together below a folder.
type Debian struct {
	Dir     string // its root
	Release string // of its kernel
	t       testing.TB
}

// CleanDebian copies a Debian as debootstrap leaves it, with dpkg and its database but no
// kernel, and returns the copy's root folder. It has what NewDebian's lacks.
func CleanDebian(t testing.TB) string {
	t.Helper()
	return copyRoot(t, "clean")
}

// copyRoot copies one of the roots that scripts/vm-root made.
func copyRoot(t testing.TB, name string) string {
	t.Helper()
	c, err := openCache()
	if err != nil {
		t.Fatal(err)
	}
	from := filepath.Join(c.dir, name)
	for _, needed := range [...]string{filepath.Join(c.dir, "root-ready"), from} {
		if _, err := os.Stat(needed); err != nil {
			t.Fatalf("the rig's Debian is not there (run scripts/vm-root as root): %v", err)
		}
	}
	to := filepath.Join(t.TempDir(), "root")
	host(t, "cp", "-a", "--reflink=auto", from, to)
	return to
}

// NewDebian copies the rig's Debian, with one kernel and one generator, and installs
// the program's tests as its only service. The other generator and, with
// initramfs-tools, all of dmsetup are taken away.
func NewDebian(t testing.TB, k Kernel, g Generator, p Program) *Debian {
	t.Helper()
	d := newDebian(t, p)
	d.kernel(k)
	if g == Dracut {
		host(t, "rm", d.in("usr/sbin/mkinitramfs"), d.in("usr/sbin/update-initramfs"))
	} else {
		host(t, "rm", "-r", d.in("usr/bin/dracut"), d.in("usr/lib/dracut"), d.in("sbin/dmsetup"), d.in("sbin/kpartx"),
			d.in("usr/share/initramfs-tools/hooks/dmsetup"))
		host(t, "sh", "-c", "rm "+d.in("usr/lib/udev/rules.d")+"/*dm*.rules")
	}
	return d
}

// newDebian copies the rig's Debian with both generators, without a kernel.
func newDebian(t testing.TB, p Program) *Debian {
	t.Helper()
	d := &Debian{Dir: copyRoot(t, "root"), t: t}
	d.rig(p)
	return d
}

// rig installs the program's tests as a service.
func (d *Debian) rig(p Program) {
	d.t.Helper()
	host(d.t, "mkdir", "-p", d.in("rig/work"), d.in("out"), d.in("srv"))
	d.Install("/rig/init", filepath.Join(filepath.Dir(p.Path), initName))
	d.Install(wire.Program, p.Path)
	d.Write("/etc/systemd/system/rig.service", service)
	host(d.t, "mkdir", "-p", d.in("etc/systemd/system/multi-user.target.wants"))
	host(d.t, "ln", "-s", "../rig.service", d.in("etc/systemd/system/multi-user.target.wants/rig.service"))
	d.Write("/etc/systemd/journald.conf", "[Journal]\nStorage=volatile\n")
}

// kernel installs a kernel's modules, those that are kept and these, which are folders,
// and its configuration.
func (d *Debian) kernel(k Kernel, also ...string) {
	d.t.Helper()
	c, err := openCache()
	if err != nil {
		d.t.Fatal(err)
	}
	d.Release, err = c.release(k)
	if err != nil {
		d.t.Fatal(err)
	}
	d.modules(filepath.Join(c.kernel(k), "lib/modules", d.Release), append(kept[:], also...))
	host(d.t, "cp", filepath.Join(c.kernel(k), "config"), d.in("boot/config-"+d.Release))
	d.Chroot("depmod", d.Release)
}

// modules copies the modules in these folders, and the lists of all of them. A kernel
// that has some of them built in lacks their folders.
func (d *Debian) modules(from string, folders []string) {
	d.t.Helper()
	to := d.in("usr/lib/modules/" + d.Release)
	lists, err := filepath.Glob(from + "/modules.*")
	if err != nil {
		d.t.Fatal(err)
	}
	host(d.t, "mkdir", "-p", to)
	host(d.t, "cp", append(lists, to)...)
	for _, name := range folders {
		if _, err := os.Stat(filepath.Join(from, name)); err != nil {
			continue
		}
		host(d.t, "mkdir", "-p", filepath.Join(to, filepath.Dir(name)))
		host(d.t, "cp", "-a", filepath.Join(from, name), filepath.Join(to, name))
	}
}

func (d *Debian) in(path string) string { return filepath.Join(d.Dir, path) }

// Install copies a program of the host into the system.
func (d *Debian) Install(path, from string) {
	d.t.Helper()
	host(d.t, "install", "-D", "-m", "755", from, d.in(path))
}

// InstallTidemark installs what BuildTidemark built.
func (d *Debian) InstallTidemark(command string) {
	d.t.Helper()
	const path = "/usr/bin/tidemark"
	d.Install(path, command)
	d.Install(boot.EarlyProgram(path), boot.EarlyProgram(command))
}

// Write writes a file of the system.
func (d *Debian) Write(path, content string) {
	d.t.Helper()
	if err := os.WriteFile(d.in(path), []byte(content), 0o644); err != nil {
		d.t.Fatal(err)
	}
}

// Chroot runs a program of the system on the host, and returns its output.
func (d *Debian) Chroot(args ...string) string {
	d.t.Helper()
	return host(d.t, "chroot", append([]string{d.Dir}, args...)...)
}

// Disk moves the initramfs, whose path in the system is given, out of the system, and
// makes the disk that it boots from.
func (d *Debian) Disk(initrd string) (System, Disk) {
	d.t.Helper()
	return System{Initrd: d.out(initrd)}, d.disk(d.ext4)
}

// out moves a file out of the system, and returns where it is then.
func (d *Debian) out(path string) string {
	d.t.Helper()
	kept := filepath.Join(d.t.TempDir(), filepath.Base(path))
	host(d.t, "mv", d.in(path), kept)
	return kept
}

// disk makes the disk of the system, with the filesystem that fill makes on it.
func (d *Debian) disk(fill func(Disk)) Disk {
	d.t.Helper()
	disk := NewDisk(d.t, "system", RootStart+RootSize+metaSize+1<<20)
	label := fmt.Sprintf("label: gpt\nstart=%d, size=%d, uuid=%s\nsize=%d, uuid=%s\n",
		RootStart/512, RootSize/512, RootPartUUID, metaSize/512, MetaPartUUID)
	cmd := exec.Command("sfdisk", "--quiet", disk.Path)
	cmd.Stdin = strings.NewReader(label)
	if out, err := cmd.CombinedOutput(); err != nil {
		d.t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	fill(disk)
	return disk
}

// ext4 makes root's filesystem on the disk.
func (d *Debian) ext4(disk Disk) {
	d.t.Helper()
	host(d.t, "mkfs.ext4", "-q", "-d", d.Dir, "-U", RootUUID, "-E", fmt.Sprintf("offset=%d", RootStart),
		disk.Path, fmt.Sprintf("%dk", RootSize>>10))
}

// xfs does the same with XFS, and a log that leaves room for the rest.
func (d *Debian) xfs(disk Disk) {
	d.t.Helper()
	onHost(d.t, disk, RootStart, RootSize, func(dev string) {
		// With these variables it makes one that is as small.
		host(d.t, "env", "TEST_DIR=x", "TEST_DEV=x", "QA_CHECK_FS=x", "mkfs.xfs", "-q", "-m", "uuid="+RootUUID, "-l", "size=16m", dev)
		at := d.t.TempDir()
		host(d.t, "mount", "-o", "nouuid", dev, at) // another run may have that UUID mounted
		defer host(d.t, "umount", at)
		host(d.t, "cp", "-a", d.Dir+"/.", at)
	})
}

// onHost attaches that many bytes of a disk, from a byte on, to the host.
func onHost(t testing.TB, disk Disk, start, size int64, use func(dev string)) {
	t.Helper()
	dev := strings.TrimSpace(host(t, "losetup", "--find", "--show", fmt.Sprintf("--offset=%d", start), fmt.Sprintf("--sizelimit=%d", size), disk.Path))
	defer host(t, "losetup", "--detach", dev)
	use(dev)
}

// host runs a program on the host and returns its output.
func host(t testing.TB, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("%v: run scripts/setup", err)
	}
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}
