package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A machine is backed up from its first minute by what the manual says, for three
// nights; its disk is lost; a rescue system restores it to a larger one; and that boots.
func TestThreeNights(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/nights")
	deb := debPackage(t)
	type machine struct {
		kernel, rescue Kernel
		filesystem     string
		size           int64 // of root, in bytes
	}
	for _, c := range oneOf([]machine{
		{Linux61, Linux612, "xfs", 300 << 20},
		{Linux612, Linux61, "ext4", 256 << 20},
	}) {
		t.Run(fmt.Sprintf("%s, %s", c.kernel, c.filesystem), func(t *testing.T) {
			t.Parallel()
			m := newNightly(t, c.kernel, c.filesystem, c.size, program, deb)
			m.boot(t, "nights.sh", m.old)
			m.rescue(t, c.rescue)
			m.boot(t, "restored.sh", m.new)
			m.check(t)
		})
	}
}

// built is the program as users get it, which the package holds.
const built = "../../bin/tidemark"

// debPackage makes the Debian package and returns its path.
func debPackage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, args := range [][]string{{"make", "-C", "../..", "build"}, {"env", "OUT=" + dir, "PACKAGE_VERSION=1", "../../scripts/packages", "deb"}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	found, err := filepath.Glob(dir + "/*.deb")
	if err != nil || len(found) != 1 {
		t.Fatalf("%v, %v", found, err)
	}
	return found[0]
}

// nightsTimeout is long because it is also counted by the guest's clock, which on a busy
// host can run several times too fast.
const nightsTimeout = 20 * time.Minute

// nightly is a machine that is backed up to a disk, and the disk that takes the place
// of its own.
type nightly struct {
	kernel           Kernel
	filesystem       string
	size             int64 // of root, in bytes
	program          Program
	system           System
	old, backup, new Disk
}

func newNightly(t *testing.T, k Kernel, filesystem string, size int64, p Program, deb string) *nightly {
	d := &Debian{Dir: CleanDebian(t), t: t}
	d.kernel(k, "kernel/fs/xfs")
	d.rig(p)
	d.quiet()
	host(t, "mkdir", d.in("backup"))
	host(t, "cp", deb, d.in("root/tidemark.deb"))
	scripts, err := filepath.Glob(p.testdata + "/*.sh")
	if err != nil {
		t.Fatal(err)
	}
	host(t, "cp", append(scripts, d.in("rig/work"))...)
	d.Write("/etc/fstab", fmt.Sprintf("UUID=%s / %s defaults 0 1\nLABEL=backup /backup ext4 defaults,noauto 0 2\n", RootUUID, filesystem))
	d.Chroot("update-initramfs", "-c", "-k", d.Release)
	m := &nightly{
		kernel: k, filesystem: filesystem, size: size, program: p,
		old:    NewDisk(t, "system", size+2<<20),
		backup: NewDisk(t, "backup", 3*size),
		new:    NewDisk(t, "new", size+64<<20),
	}
	initrd := filepath.Join(t.TempDir(), "initrd")
	host(t, "mv", d.in("boot/initrd.img-"+d.Release), initrd)
	m.system = System{Initrd: initrd, Args: "root=PARTUUID=" + RootPartUUID + " ro systemd.show_status=0"}
	m.fill(t, d)
	host(t, "mkfs.ext4", "-q", "-L", "backup", m.backup.Path)
	return m
}

// quiet takes away what a boot does not need, which under emulation takes long: texts,
// and the services that the rig's own Debian has not.
func (d *Debian) quiet() {
	d.t.Helper()
	for _, name := range [...]string{"doc", "man", "info", "locale"} {
		host(d.t, "rm", "-rf", d.in("usr/share/"+name))
	}
	c, err := openCache()
	if err != nil {
		d.t.Fatal(err)
	}
	units, err := filepath.Glob(filepath.Join(c.dir, "root/etc/systemd/system/*"))
	if err != nil {
		d.t.Fatal(err)
	}
	for _, unit := range units {
		if to, err := os.Readlink(unit); err == nil && to == os.DevNull {
			host(d.t, "cp", "-P", "--remove-destination", unit, d.in("etc/systemd/system"))
		}
	}
}

// fill makes the machine's disk: a partition table, and a system on its one partition.
func (m *nightly) fill(t *testing.T, d *Debian) {
	t.Helper()
	cmd := exec.Command("sfdisk", "--quiet", m.old.Path)
	cmd.Stdin = strings.NewReader(fmt.Sprintf("label: gpt\nstart=%d, size=%d, uuid=%s\n", RootStart/512, m.size/512, RootPartUUID))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	onHost(t, m.old, RootStart, m.size, func(dev string) {
		if m.filesystem == "xfs" {
			host(t, "mkfs.xfs", "-q", "-m", "uuid="+RootUUID, dev)
		} else {
			host(t, "mkfs.ext4", "-q", "-U", RootUUID, dev)
		}
		at := t.TempDir()
		host(t, "mount", dev, at)
		defer host(t, "umount", at)
		host(t, "cp", "-a", d.Dir+"/.", at)
	})
}

// boot boots the machine from a disk and runs a script in it.
func (m *nightly) boot(t *testing.T, script string, disk Disk) {
	t.Helper()
	r := Run(t, Config{
		Kernel: m.kernel, System: &m.system, MemMB: 768, Timeout: nightsTimeout, Disks: []Disk{disk, m.backup},
		Env: []string{"SCRIPT=" + script, "LOST=1"},
	}, m.program)
	t.Logf("%s: up after %v, all %v", script, r.Boot, r.Total)
	if t.Failed() {
		t.FailNow()
	}
}

// rescue restores the machine's disk in another system.
func (m *nightly) rescue(t *testing.T, k Kernel) {
	t.Helper()
	r := Run(t, Config{
		Kernel: k, Disks: []Disk{m.backup, m.new}, Files: map[string]string{"bin/tidemark": built},
		Env: []string{"SCRIPT=testdata/rescue.sh"}, Timeout: nightsTimeout,
	}, m.program)
	t.Logf("rescue: up after %v, all %v", r.Boot, r.Total)
	if t.Failed() {
		t.FailNow()
	}
}

// check checks root's filesystem, which was shut down.
func (m *nightly) check(t *testing.T) {
	t.Helper()
	onHost(t, m.new, RootStart, m.size, func(dev string) {
		if m.filesystem == "xfs" {
			host(t, "xfs_repair", "-n", dev)
		} else {
			host(t, "e2fsck", "-fn", dev)
		}
	})
}
