package boot

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/linux/mounts/mountstest"
)

// What is saved must be there before disks are mounted. The test runs itself again with a /var/lib
// that is a filesystem of its own.
func TestWhatIsSavedIsOnRoot(t *testing.T) {
	const inside = "TIDEMARK_TEST_NAMESPACE"
	if os.Getenv(inside) == "" {
		again := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		again.Env = append(os.Environ(), inside+"=1")
		again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS}
		if out, err := again.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	disk := mountstest.Disk(t, 1<<20)
	says := func(lacking bool, refused ...string) {
		t.Helper()
		if lacks, err := lacksPlace(); err != nil || lacks != lacking {
			t.Errorf("it lacks a place: %v, %v", lacks, err)
		}
		stage, err := CheckTracked(disk)
		if len(refused) == 0 && (err != nil || stage != StageSystem) {
			t.Errorf("%s, %v", stage, err)
		}
		for _, want := range refused {
			if !errors.Is(err, ErrUnsuitable) || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		}
	}
	mount := func(at string) {
		t.Helper()
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	says(false)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	mount(stateHome)
	says(true)
	mount("/etc") // there the folder may be made
	const neither = "neither " + stateHome + " nor /etc/tidemark is on root's filesystem"
	says(true, neither, "--era")
	if err := MakePlace(); err != nil {
		t.Fatal(err)
	}
	says(false, neither, "--era")
	if at := (Tab{}).PlaceOf("/var/lib/tidemark", "/dev/mapper/x"); at.Dir != onRoot {
		t.Errorf("it is saved to %s", at.Dir)
	}
}

func TestKeyFilesOfACrypttab(t *testing.T) {
	const text = `# name device key options
a /dev/sda1 /etc/keys/a luks
b UUID=1 none luks
c UUID=2
swap /dev/sdb /dev/urandom swap
#d /dev/sdc /old/key
e /dev/sdd /key:LABEL=stick luks
f	/dev/sde	/srv/key
g /dev/sdf - luks,header=/srv/header,nofail
`
	if got, want := keyFiles(text), []string{"/etc/keys/a", "/srv/key", "/srv/header"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// A kernel that cannot track, and one without an initramfs, may be what the next boot is with.
func TestOtherKernelsLoseTheMarksOfTrackedDisks(t *testing.T) {
	s, dir := newSystem(t)
	const root, data = "/dev/disk/by-id/virtio-system", "/dev/disk/by-id/virtio-data"
	put(t, dir, "usr/bin/tidemark", "program", 0o755)
	put(t, dir, "usr/bin/tidemark-boot", "its part for an initramfs", 0o755)
	table, err := Tab{}.WithTracked(root, StageInitramfs)
	if err == nil {
		table, err = table.WithTracked(data, StageSystem)
	}
	if err != nil {
		t.Fatal(err)
	}
	plan, err := s.Plan(table, "/usr/bin/tidemark", false)
	if err == nil {
		err = s.Apply(plan)
	}
	if err != nil {
		t.Fatal(err)
	}
	says := func(what, ofRoot, ofData string) {
		t.Helper()
		l, err := s.Lasting(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{ofRoot, ofData} {
			if got := l.Tracked[i].LostAtReboot; want == "" && got != "" || !strings.Contains(got, want) {
				t.Errorf("%s: of %s it says %q, want %q", what, l.Tracked[i].Disk, got, want)
			}
		}
		if l.Good() != (ofRoot+ofData == "") {
			t.Errorf("%s: good: %v", what, l.Good())
		}
	}
	put(t, dir, "boot/config-6.1", "CONFIG_X=m\nCONFIG_BPF_SYSCALL=y\nCONFIG_DEBUG_INFO_BTF=y\n", 0o644)
	says("all is well", "", "")
	put(t, dir, "boot/vmlinuz-6.12", "", 0o644)
	says("a new kernel", "/boot/vmlinuz-6.12 is without: there is no initramfs", "")
	put(t, dir, "boot/initramfs-6.12.img", "no archive", 0o644)
	says("its image is damaged", "/boot/initramfs-6.12.img is unknown", "")
	for _, name := range []string{"/boot/initramfs-6.12.img", "/boot/vmlinuz-6.12"} {
		if err := os.Remove(dir + name); err != nil {
			t.Fatal(err)
		}
	}
	put(t, dir, "boot/config-6.13", "CONFIG_BPF_SYSCALL=y\n# CONFIG_DEBUG_INFO_BTF is not set\n", 0o644)
	blind := "the kernel 6.13 cannot track: CONFIG_DEBUG_INFO_BTF is not set in /boot/config-6.13"
	says("a kernel without BTF", blind, blind)
	if err := os.Remove(dir + "/boot/config-6.13"); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "etc/systemd/system/"+trackUnit, "changed\n", 0o644)
	says("a unit was changed", trackUnit+" is changed", trackUnit+" is changed")
	put(t, dir, "usr/bin/tidemark-boot", "", 0o755)
	if err := os.Remove(dir + "/usr/bin/tidemark-boot"); err != nil {
		t.Fatal(err)
	}
	says("its part for an initramfs is gone", "tidemark-boot is missing", trackUnit+" is changed")
}
