//go:build linux

// Package reboots_test runs in a Debian guest with data disks that are tracked over reboots (see
// package guest), as root's may be: one test a boot, which mirrors the disks and writes to them.
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

// TestBoot is what is done in each boot: of each disk a mirror is made while it is in use, and one
// when it is unmounted, which is compared. Where marks were kept, both are incremental.
func TestBoot(t *testing.T) {
	guest.Run(t, "mount", "/dev/disk/by-id/virtio-state", "/srv")
	tested := 0
	for _, d := range []struct{ name, dev, at string }{
		{"btrfs", "/dev/disk/by-id/virtio-btrfs", "/data"},
		{"vault", "/dev/disk/by-id/virtio-vault", "/vault"},
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
			mirror(t, d.dev, d.name, lost)
			write(t, d.at, "busy")
			still, again := []string{"umount", d.at}, []string{"mount", d.at}
			if d.at == "/" {
				still, again = []string{"mount", "-o", "remount,ro", "/"}, []string{"mount", "-o", "remount,rw", "/"}
			}
			guest.Run(t, still[0], still[1:]...)
			mirror(t, d.dev, d.name, "")
			same(t, d.dev, guest.Disk(t, "copy-"+d.name))
			guest.Run(t, again[0], again[1:]...)
			write(t, d.at, "afterwards")
		})
	}
	status(t, tested)
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
	said := guest.Run(t, "journalctl", "--boot", "--output=cat", "--unit", unit)
	t.Log(said)
	return said
}

// mirror mirrors a disk. Lost is why it cannot be incremental.
func mirror(t *testing.T, dev, name, lost string) {
	t.Helper()
	args := []string{"--state-dir", "/srv/state", "mirror", "--json", dev, guest.Disk(t, "copy-"+name)}
	if name == "root" && os.Getenv("BOOT") == "1" {
		args = append(args, "--adopt") // it begins as a copy
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
	if first := os.Getenv("BOOT") == "1"; lost != "" && !first && !strings.Contains(said.String()+string(out), lost) {
		t.Errorf("the mirror does not say %q", lost)
	}
}

// same fails unless two disks of one size hold the same.
func same(t *testing.T, a, b string) {
	t.Helper()
	guest.Run(t, "blockdev", "--flushbufs", a)
	guest.Run(t, "blockdev", "--flushbufs", b)
	guest.Run(t, "cmp", a, b)
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
