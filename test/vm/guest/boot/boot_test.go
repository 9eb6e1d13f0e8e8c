//go:build linux

// Package boot_test runs in a Debian guest whose root is on an era device (see
// package guest): one test a boot, which mirrors root and writes to it.
package boot_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/test/vm/guest"
)

func TestMain(m *testing.M) { guest.Main(m) }

const root = "/dev/mapper/root"

// TestBoot is what is done in each boot. Root is on the era device; a mirror of the
// busy root and one of the root at rest follow, incremental after the first boot; the
// host compares; and root is written to once more, without an end to it where the
// power is to be cut.
func TestBoot(t *testing.T) {
	onEra(t)
	guest.Run(t, "mount", "/dev/disk/by-id/virtio-state", "/srv")
	first := os.Getenv("BOOT") == "1"
	scribble(t, "live")
	mirror(t, !first)
	guest.Run(t, "mount", "-o", "remount,ro", "/")
	mirror(t, true)
	if answer := guest.Tell(t, "compare"); answer != "same" {
		t.Fatalf("the mirror and root: %s", answer)
	}
	guest.Run(t, "mount", "-o", "remount,rw", "/")
	scribble(t, "afterwards")
	guest.Run(t, "umount", "/srv")
	if os.Getenv("CUT") == "" {
		return
	}
	for i := 0; ; i++ {
		scribble(t, "until the cut")
		guest.Tell(t, "synced "+strconv.Itoa(i))
	}
}

// onEra fails unless the filesystem at / is on the era device, and on nothing else.
func onEra(t *testing.T) {
	t.Helper()
	var at, dev unix.Stat_t
	if err := unix.Stat("/", &at); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(root, &dev); err != nil {
		t.Fatal(err)
	}
	if at.Dev != dev.Rdev {
		t.Fatalf("/ is on %d:%d, not on %s", unix.Major(at.Dev), unix.Minor(at.Dev), root)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(guest.Run(t, "sh", "-c", "ls -l /dev/mapper /sys/block/dm-0/queue/discard_max_bytes; udevadm info /dev/dm-0; systemctl --failed; systemctl list-jobs; dmesg | tail -5"))
		}
	})
	// The name by UUID is the era device's, and the data device has only one name.
	link, err := filepath.EvalSymlinks("/dev/disk/by-uuid/" + os.Getenv("ROOT_UUID"))
	if err != nil || !strings.HasPrefix(filepath.Base(link), "dm-") {
		t.Errorf("root's UUID leads to %s (%v)", link, err)
	}
	data := "/dev/disk/by-partuuid/" + os.Getenv("DATA_PARTUUID")
	if err := unix.Mount(data, t.TempDir(), "ext4", unix.MS_RDONLY, ""); err == nil {
		t.Error("the data device could be mounted beside the era device")
	}
	if state := guest.Run(t, "systemctl", "show", "-P", "Result", "tidemark-era-note.service"); state != "success" {
		t.Errorf("tidemark-era-note.service: %s", state)
	}
	if gaps, err := filepath.Glob("/var/lib/tidemark/era/*.gap.json"); err != nil || len(gaps) > 0 {
		t.Errorf("gaps were noted: %v, %v", gaps, err)
	}
	var status struct {
		Files []struct{ Path, State string }
	}
	out, err := exec.Command("tidemark", "boot", "status", "--json").Output()
	if err := json.Unmarshal(out, &status); err != nil {
		t.Fatalf("boot status: %v", err)
	}
	for _, f := range status.Files {
		if f.State != "same" {
			t.Errorf("%s is %s", f.Path, f.State)
		}
	}
	if err != nil {
		t.Errorf("boot status: %v\n%s", err, out)
	}
}

// report is what mirror --json says.
type report struct {
	Tracker string `json:"tracker"`
	Mode    string `json:"mode"`
}

// mirror mirrors root to the disk "copy".
func mirror(t *testing.T, incremental bool) {
	t.Helper()
	cmd := exec.Command("tidemark", "--state-dir", "/srv/state", "mirror", "--json", root, guest.Disk(t, "copy"))
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	t.Logf("%s%s", said.String(), out)
	var r report
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		t.Fatal(err)
	}
	if r.Tracker != "era" || incremental != (r.Mode == "incremental") {
		t.Errorf("mirrored as %+v; to be incremental: %v", r, incremental)
	}
}

// scribble writes to root, waits until it is on the disk, and leaves some that is not.
func scribble(t *testing.T, what string) {
	t.Helper()
	name := filepath.Join("/var/tmp", strings.ReplaceAll(what, " ", "-")+"-"+os.Getenv("BOOT"))
	file, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString(strings.Repeat(what+" ", 20000)); err != nil {
		t.Fatal(err)
	}
	if err := file.Sync(); err != nil {
		t.Fatal(err)
	}
	guest.WriteFile(t, name+"-unsynced", strings.Repeat(what, 1000))
}
