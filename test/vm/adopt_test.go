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

// The disk that the guest adopts partitions of: "data", and "other", whose entry is being
// written when the power is cut.
const (
	dataStart     = 1 << 20 // bytes
	dataPartUUID  = "7d1a9c52-5f0e-4a51-9d1b-1f6d3c2a7e11"
	otherPartUUID = "7d1a9c52-5f0e-4a51-9d1b-1f6d3c2a7e12"
	dataUUID      = "7d1a9c52-5f0e-4a51-9d1b-1f6d3c2a7e13"
	otherUUID     = "7d1a9c52-5f0e-4a51-9d1b-1f6d3c2a7e14"
)

// A Debian boots with root on a linear device over its partition. In it a partition is
// adopted at once and at the next boot, found by all the names that it had, and plain again
// when that is undone, as root is; a persistent snapshot of it outlives a reboot; a power cut while
// entries are written leaves a system that boots. Snapshots are taken of the running root, also with
// little memory, and of those that the cut ends nothing is left.
func TestAdoptedDisks(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/adopt")
	command := BuildTidemark(t)
	type machine struct {
		kernel    Kernel
		generator Generator
		making    string // program that makes images
	}
	for _, c := range oneOf([]machine{ // TestRootOnEra has the other generator
		{Linux612, Dracut, "/usr/bin/dracut"},
		{Linux61, InitramfsTools, "/usr/sbin/update-initramfs"},
	}) {
		t.Run(fmt.Sprintf("%s, %s", c.kernel, c.generator), func(t *testing.T) {
			t.Parallel()
			d := NewDebian(t, c.kernel, c.generator, program)
			d.InstallTidemark(command)
			d.Write("/etc/fstab", "UUID="+RootUUID+" / ext4 defaults 0 1\nLABEL=data /srv ext4 noauto 0 2\nUUID="+otherUUID+" /mnt ext4 defaults 0 2\n")
			d.enable(t, "tidemark-snapshots.service")
			plain := filepath.Join(t.TempDir(), "plain") // the initramfs of a system without entries
			host(t, "mv", filepath.Join(d.Dir, d.initramfs(c.generator)), plain)
			host(t, command, "boot", "install", "--root", d.Dir, "--linear", "root", "--data", "PARTUUID="+RootPartUUID)
			initrd := d.initramfs(c.generator)
			imageState(t, command, d.Dir, initrd, "current")
			if grown := fileSize(t, d.in(initrd)) - fileSize(t, plain); grown > 6<<20 {
				t.Errorf("the initramfs has grown by %d bytes, more than 6 MiB", grown)
			} else {
				t.Logf("the initramfs has grown by %d bytes", grown)
			}
			// Making images takes an emulated machine minutes. These hold root's entry alone, which
			// changes once: when it is undone the other image is what would be made.
			d.Write(c.making, "#!/bin/sh\nexit 0\n")
			system, root := d.Disk(initrd)
			root.Volatile, root.Seed = true, uint64(time.Now().UnixNano())
			t.Log("seed", root.Seed)
			data := adoptDisk(t)
			for boot := 1; boot <= 3; boot++ {
				cut, memory := boot == 2, 768
				const args = " ro systemd.show_status=0 rd.shell=0 rd.emergency=reboot rd.retry=5"
				system.Args = "root=PARTUUID=" + RootPartUUID + args
				if cut {
					memory, system.Args = 256, "root=/dev/mapper/root"+args // as update-grub writes it on an adopted root
				}
				if boot == 3 {
					system.Initrd = plain
				}
				r := Run(t, Config{
					Kernel: c.kernel, System: &system, MemMB: memory, Timeout: bootTimeout, Disks: []Disk{root, data},
					Tests: fmt.Sprintf("^TestBoot%d$", boot),
					Env:   []string{"ROOT_UUID=" + RootUUID, "ROOT_PARTUUID=" + RootPartUUID, "DATA_UUID=" + dataUUID, "DATA_PARTUUID=" + dataPartUUID, "OTHER_PARTUUID=" + otherPartUUID},
					OnEvent: func(guest *Machine, event string) string {
						if event == "cut" {
							guest.PowerCut()
						}
						return ""
					},
				}, program)
				t.Logf("boot %d: up after %v, all %v, %d tests, lost %v", boot, r.Boot, r.Total, r.Tests, r.Lost)
				if t.Failed() {
					return
				}
				if r.Cut != cut {
					t.Fatalf("boot %d: cut: %v", boot, r.Cut)
				}
			}
			host(t, "e2fsck", "-fn", fmt.Sprintf("%s?offset=%d", root.Path, RootStart))
			host(t, "e2fsck", "-fn", fmt.Sprintf("%s?offset=%d", data.Path, dataStart))
		})
	}
}

// enable installs one of the units that the packages have on.
func (d *Debian) enable(t *testing.T, unit string) {
	t.Helper()
	content, err := os.ReadFile("../../dist/systemd/" + unit)
	if err != nil {
		t.Fatal(err)
	}
	d.Write("/etc/systemd/system/"+unit, string(content))
	host(t, "ln", "-s", "../"+unit, d.in("etc/systemd/system/multi-user.target.wants/"+unit))
}

// initramfs makes the system's initramfs and returns its path there.
func (d *Debian) initramfs(g Generator) string {
	d.t.Helper()
	if g == Dracut {
		initrd := "/boot/initramfs-" + d.Release + ".img"
		d.Chroot("dracut", "--quiet", "--force", "--no-hostonly", "--compress", "zstd -3", "--kver", d.Release, initrd)
		return initrd
	}
	d.Chroot("update-initramfs", "-c", "-k", d.Release)
	return "/boot/initrd.img-" + d.Release
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// adoptDisk makes the disk of two partitions with ext4.
func adoptDisk(t *testing.T) Disk {
	t.Helper()
	const start, size = dataStart, 24 << 20
	disk := NewDisk(t, "data", start+2*size+1<<20)
	cmd := exec.Command("sfdisk", "--quiet", disk.Path)
	cmd.Stdin = strings.NewReader(fmt.Sprintf("label: gpt\nstart=%d, size=%d, uuid=%s\nsize=%d, uuid=%s\n",
		start/512, size/512, dataPartUUID, size/512, otherPartUUID))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	for i, p := range []struct{ uuid, label string }{{dataUUID, "data"}, {otherUUID, "other"}} {
		host(t, "mkfs.ext4", "-q", "-b", "4096", "-U", p.uuid, "-L", p.label, "-E", fmt.Sprintf("offset=%d,lazy_itable_init=0", start+i*size),
			disk.Path, fmt.Sprintf("%dk", size>>10))
	}
	return disk
}
