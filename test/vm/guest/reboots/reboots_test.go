//go:build linux

// Package reboots_test runs in a Debian guest with data disks that are tracked over reboots (see
// package guest), as root's is: one test a boot, which mirrors the disks and writes to them.
package reboots_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/test/vm/guest"
)

func TestMain(m *testing.M) { guest.Main(m) }

// TestBoot is what is done in each boot: of each disk a mirror is made while it is in use, but with STILL,
// and one when it is unmounted, which is compared. Where marks were kept, both are incremental.
func TestBoot(t *testing.T) {
	soft(t)
	guest.Run(t, "mount", "/dev/disk/by-id/virtio-state", "/srv")
	if first() {
		makeVolumes(t)
	}
	if newRoot() {
		takeLVMAway(t)
	}
	tested := 0
	for _, d := range []struct{ name, dev, at string }{
		{"btrfs", "/dev/disk/by-id/virtio-btrfs", "/data"},
		{"vault", plain, "/vault"},
		{"secret", secret(), "/secret"},
		{"root", "/dev/disk/by-id/virtio-system", "/"},
	} {
		lost, there := os.LookupEnv(d.name)
		if !there {
			continue
		}
		tested++
		t.Run(d.name, func(t *testing.T) {
			said := resumed(t, d.dev)
			if lost == "" && !strings.Contains(said, "marks from before the boot are good") || lost != "" && !strings.Contains(said, lost) {
				t.Errorf("the unit said %q, want %q", said, lost)
			}
			if os.Getenv("STILL") == "" {
				mirror(t, d.dev, d.name, lost)
				lost = ""
			}
			write(t, d.at, "busy")
			still, again := []string{"umount", d.at}, []string{"mount", d.at}
			if d.at == "/" {
				still, again = []string{"mount", "-o", "remount,ro", "/"}, []string{"mount", "-o", "remount,rw", "/"}
			}
			guest.Run(t, still[0], still[1:]...)
			mirror(t, d.dev, d.name, lost)
			same(t, d.dev, d.name)
			guest.Run(t, again[0], again[1:]...)
			write(t, d.at, "afterwards")
		})
	}
	status(t, tested)
	if os.Getenv("KEXEC") != "" {
		guest.Run(t, "kexec", "--load", "/srv/next", "--args-linux", "--initrd=/srv/next-initrd", "--reuse-cmdline", "--no-checks")
	}
	guest.Run(t, "umount", "/srv")
	if os.Getenv("SHUTDOWN_ROOT") != "" { // dracut finds its image on this disk
		guest.Run(t, "mount", "/dev/disk/by-id/virtio-state", "/srv")
		guest.WriteFile(t, "/run/initramfs/.need_shutdown", "")
	}
	if os.Getenv("CUT") != "" {
		guest.Run(t, "sync")
		guest.Tell(t, "cut")
	}
}

// TestTimes says when it begins and ends, and how long our units took, by the guest's clock.
func TestTimes(t *testing.T) {
	guest.WriteFile(t, "/dev/kmsg", "<2>rig: up")
	for unit := range strings.Lines(guest.Run(t, "systemctl", "list-units", "--plain", "--no-legend", "tidemark-track*.service")) {
		unit, _, _ = strings.Cut(unit, " ")
		t.Log(unit, guest.Run(t, "systemctl", "show", "-P", "ExecMainStartTimestampMonotonic", "-P", "ExecMainExitTimestampMonotonic", unit))
	}
	write(t, "/srv", "busy")
	write(t, "/root", "busy")
	guest.WriteFile(t, "/dev/kmsg", "<2>rig: down")
}

func first() bool   { return os.Getenv("BOOT") == "1" }
func newRoot() bool { return os.Getenv("NEW_ROOT") != "" }

// soft fails unless user space alone was rebooted where SOFT says so. Only then /run is what it was.
func soft(t *testing.T) {
	t.Helper()
	const mark = "/run/rig-was-here"
	if _, err := os.Stat(mark); (err == nil) != (os.Getenv("SOFT") != "") {
		t.Errorf("a reboot of user space alone: %v", err == nil)
	}
	guest.WriteFile(t, mark, "")
}

// The volumes: a logical volume on a disk, and one on LUKS, which goes when takeLVMAway has run. All of LUKS
// is used then.
const (
	plain   = "/dev/mapper/plain-vault"
	layered = "/dev/mapper/rig-secret"
	crypt   = "/dev/mapper/crypt"
	key     = "/etc/rig.key"
)

// secret is the volume that is encrypted.
func secret() string {
	if _, err := os.Stat(layered); err == nil {
		return layered
	}
	return crypt
}

// makeVolumes makes them, has them mounted at boot, and their tracking go on over reboots.
func makeVolumes(t *testing.T) {
	t.Helper()
	const disk = "/dev/disk/by-id/virtio-secret"
	guest.WriteFile(t, key, "a key that is no secret")
	guest.Run(t, "cryptsetup", "luksFormat", "--batch-mode", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--key-file="+key, disk)
	guest.WriteFile(t, "/etc/crypttab", "crypt "+disk+" "+key+" luks,nofail\n")
	fstab := guest.Run(t, "cat", "/etc/fstab")
	guest.WriteFile(t, "/etc/fstab", fstab+"\n"+plain+" /vault ext4 defaults 0 2\n"+layered+" /secret ext4 defaults 0 2\n")
	guest.Run(t, "systemctl", "daemon-reload")
	guest.Run(t, "systemctl", "start", "systemd-cryptsetup@crypt.service")
	for _, v := range [][3]string{{"plain", "vault", guest.Disk(t, "vault")}, {"rig", "secret", crypt}} {
		guest.Run(t, "lvm", "vgcreate", v[0], v[2])
		guest.Run(t, "lvm", "lvcreate", "--yes", "--name="+v[1], "--size=32m", v[0])
	}
	guest.Run(t, "mkfs.ext4", "-q", plain)
	guest.Run(t, "mkfs.ext4", "-q", layered)
	guest.Run(t, "systemctl", "start", "vault.mount", "secret.mount")
	t.Log(guest.Run(t, "tidemark", "boot", "install", "--track", plain, "--track", layered))
	guest.Run(t, "sync")
}

// takeLVMAway makes the filesystem on LUKS itself.
func takeLVMAway(t *testing.T) {
	t.Helper()
	guest.Run(t, "umount", "/secret")
	t.Log(guest.Run(t, "tidemark", "boot", "uninstall", "--track", layered))
	guest.Run(t, "lvm", "vgremove", "--yes", "rig")
	guest.Run(t, "mkfs.ext4", "-q", "-F", crypt)
	guest.WriteFile(t, "/etc/fstab", strings.Replace(guest.Run(t, "cat", "/etc/fstab"), layered, crypt, 1)+"\n")
	guest.Run(t, "systemctl", "daemon-reload")
	guest.Run(t, "systemctl", "start", "secret.mount")
	t.Log(guest.Run(t, "tidemark", "boot", "install", "--track", crypt))
}

// resumed returns what the unit of a disk said, and fails when it failed.
func resumed(t *testing.T, dev string) string {
	t.Helper()
	template := "tidemark-track@"
	if strings.HasSuffix(dev, "-system") {
		template = "tidemark-track-root@"
	}
	unit := template + strings.TrimSpace(guest.Run(t, "systemd-escape", "--path", dev)) + ".service"
	if state := strings.TrimSpace(guest.Run(t, "systemctl", "show", "-P", "ActiveState", unit)); state != "active" {
		t.Errorf("%s is %s", unit, state)
	}
	since := guest.Run(t, "systemctl", "show", "-P", "InvocationID", unit)
	said := guest.Run(t, "journalctl", "--output=short-monotonic", "_SYSTEMD_INVOCATION_ID="+since, "+", "INVOCATION_ID="+since)
	t.Log(said)
	return said
}

// mirror mirrors a disk. Lost is why it cannot be incremental.
func mirror(t *testing.T, dev, name, lost string) {
	t.Helper()
	args := []string{"--state-dir", "/srv/state", "mirror", "--json", dev, guest.Disk(t, "copy-"+name)}
	begins := first()
	switch {
	case name == "root" && (first() || newRoot()):
		args, begins = append(args, "--adopt"), true // it begins as a copy
	case name == "secret" && newRoot():
		args, begins = append(args, "--force"), true // it is another filesystem
	}
	cmd := exec.Command("tidemark", args...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	t.Logf("%s%s", said.String(), out)
	var r struct {
		Tracker   string `json:"tracker"`
		Mode      string `json:"mode"`
		BytesRead int64  `json:"bytes_read"`
		Size      int64  `json:"size"`
	}
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		t.Fatal(err)
	}
	if incremental := r.Mode == "incremental"; r.Tracker != "bpf" || incremental != (lost == "") {
		t.Errorf("mirrored as %+v; lost: %q", r, lost)
	}
	if lost != "" && !begins && !strings.Contains(said.String()+string(out), lost) {
		t.Errorf("the mirror does not say %q", lost)
	}
}

// same fails unless a disk and its copy hold the same. The host compares them quicker, but for what is
// encrypted.
func same(t *testing.T, dev, name string) {
	t.Helper()
	copied := guest.Disk(t, "copy-"+name)
	guest.Run(t, "blockdev", "--flushbufs", dev)
	guest.Run(t, "blockdev", "--flushbufs", copied)
	if dev == secret() {
		guest.Run(t, "cmp", "--bytes", guest.Run(t, "blockdev", "--getsize64", dev), dev, copied)
	} else if answer := guest.Tell(t, "compare "+name); answer != "same" {
		t.Errorf("the disk and its copy: %s", answer)
	}
}

func write(t *testing.T, dir, what string) {
	t.Helper()
	name := filepath.Join(dir, what+"-"+os.Getenv("BOOT"))
	guest.WriteFile(t, name, strings.Repeat(what, 50000))
	guest.Run(t, "sync", "--file-system", dir)
	guest.WriteFile(t, name+"-unsynced", strings.Repeat(what, 1000))
}

// status fails unless "track status" says that the next reboot keeps the marks.
func status(t *testing.T, disks int) {
	t.Helper()
	out := guest.Run(t, "tidemark", "track", "status")
	t.Log(out)
	if n := strings.Count(out, "the marks are kept when it is clean"); n != disks {
		t.Errorf("of %d disks the marks are kept, want %d", n, disks)
	}
}
