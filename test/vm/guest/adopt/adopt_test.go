//go:build linux

// Package adopt_test runs in a Debian guest whose root is on a linear device (see package
// guest): a test for each boot.
package adopt_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/linux/reexec"
	"tidemark/linux/sysfs"
	"tidemark/snapshot"
	"tidemark/test/vm/guest"
	"tidemark/test/vm/guest/instant"
)

func TestMain(m *testing.M) {
	reexec.Main(instant.Churner)
	guest.Main(m)
}

const (
	byUUID     = "/dev/disk/by-uuid/"
	byLabel    = "/dev/disk/by-label/"
	byPartUUID = "/dev/disk/by-partuuid/"
)

// names are the names of the partition "data".
func names() []string {
	return []string{byUUID + os.Getenv("DATA_UUID"), byLabel + "data", byPartUUID + os.Getenv("DATA_PARTUUID")}
}

// TestBoot1 adopts a partition at once, undoes it, and adopts it for the next boot.
func TestBoot1(t *testing.T) {
	onLinear(t, "/", "root", byUUID+os.Getenv("ROOT_UUID"), byPartUUID+os.Getenv("ROOT_PARTUUID"))
	snapshotOfRoot(t)
	guest.Run(t, "tidemark", "snapshot", "destroy", "root")
	disk := guest.Disk(t, "data")
	plain := disk + "1"
	refuse(t, disk, "it has partitions; adopt those instead: "+disk+"1, "+disk+"2")
	fstab, err := os.ReadFile("/etc/fstab")
	if err != nil {
		t.Fatal(err)
	}
	guest.WriteFile(t, "/etc/fstab", string(fstab)+plain+" /media ext4 noauto 0 0\n")
	refuse(t, plain, "/etc/fstab:4: "+plain)
	guest.WriteFile(t, "/etc/fstab", string(fstab))

	mirror(t, 0, plain)
	if got := adopt(t, plain, "--name", "data", "--dry-run"); got != "adopted" {
		t.Errorf("would be %s", got)
	}
	leadTo(t, plain, names()...)
	if got := adopt(t, plain, "--name", "data"); got != "adopted" {
		t.Fatalf("a partition that nobody uses is %s", got)
	}
	if got := adopt(t, plain); got != "not-needed" {
		t.Errorf("adopted again it is %s", got)
	}
	leadTo(t, "/dev/mapper/data", names()...)
	shake(t, plain)
	const refused = 6
	mirror(t, refused, "/dev/mapper/data")
	mirror(t, 0, "--adopt", "/dev/mapper/data")
	for _, tag := range []string{"UUID=" + os.Getenv("DATA_UUID"), "LABEL=data", "PARTUUID=" + os.Getenv("DATA_PARTUUID"), "/srv"} {
		args := []string{tag, "/srv"}
		if tag == "/srv" { // as fstab has it
			args = args[1:]
		}
		guest.Run(t, "mount", args...)
		onLinear(t, "/srv", "data", names()...)
		guest.Run(t, "umount", "/srv")
	}
	guest.Run(t, "mount", "/srv")
	guest.Run(t, "tidemark", "snapshot", "create", "--name", "one", "--size", "2M", "--chunk", "4K", "/dev/mapper/data")
	if got := adopt(t, plain); got != "not-needed" {
		t.Errorf("adopted again while there is a snapshot it is %s", got)
	}
	if got := adopt(t, plain, "--undo"); got != "next-boot" {
		t.Fatalf("a device with a snapshot, when it is undone, is %s", got)
	}
	shake(t, plain)
	leadTo(t, "/dev/mapper/data", names()...)
	guest.Run(t, "tidemark", "snapshot", "destroy", "one")
	shake(t, plain)
	onLinear(t, "/srv", "data", names()...)
	guest.Run(t, "umount", "/srv")
	if got := adopt(t, plain, "--undo"); got != "undone" {
		t.Fatalf("a device that nobody uses, when it is undone, is %s", got)
	}
	leadTo(t, plain, names()...)
	shake(t, plain)
	leadTo(t, plain, names()...)
	guest.Run(t, "mount", "/srv")
	if got := adopt(t, plain, "--name", "data"); got != "next-boot" {
		t.Fatalf("a partition that is mounted is %s", got)
	}
	shake(t, plain)
	leadTo(t, plain, names()...)
	if exec.Command("findmnt", "/srv").Run() != nil {
		t.Error("/srv is not mounted any more")
	}
	guest.WriteFile(t, "/srv/kept", "kept")
	guest.Run(t, "umount", "/srv")
	fstabAuto(t)
	lasting(t, plain)
}

// backup is brought up to date by the commands of dattobd, over the shutdown, with a snapshot whose
// image is there again.
const backup = "/root/sda1-bkp"

// dattobd makes a backup of the adopted partition, and brings it up to date, by the commands of
// dattobd. What changes then is followed over the shutdown.
func dattobd(t *testing.T, plain string) {
	t.Helper()
	for _, name := range []string{"dbdctl", "update-img"} {
		guest.Run(t, "ln", "-s", "tidemark", "/usr/bin/"+name)
	}
	guest.Run(t, "dbdctl", "setup-snapshot", plain, "/srv/.datto", "0")
	guest.Run(t, "dd", "if=/dev/datto0", "of="+backup, "bs=1M", "conv=sparse")
	guest.Run(t, "dbdctl", "transition-to-incremental", "0")
	guest.WriteFile(t, "/srv/changed", strings.Repeat("changed ", 64<<10))
	update(t, "/srv/.datto", "/srv/.datto1")
	guest.Run(t, "tidemark", "boot", "install", "--track", "/dev/mapper/data")
	guest.WriteFile(t, "/srv/changed", strings.Repeat("after it ", 32<<10))
}

// update takes the next snapshot, with its blocks in the file next, and brings the backup to it.
func update(t *testing.T, list, next string) {
	t.Helper()
	guest.Run(t, "dbdctl", "transition-to-snapshot", next, "0")
	guest.Run(t, "update-img", "/dev/datto0", list, backup)
	guest.Run(t, "cmp", "/dev/datto0", backup)
	guest.Run(t, "rm", list)
}

// reloaded brings the backup up to date after the reboot.
func reloaded(t *testing.T, plain string) {
	t.Helper()
	t.Log(guest.Run(t, "journalctl", "--boot", "--unit", "tidemark-track@dev-mapper-data", "--output", "cat"))
	if out, err := exec.Command("dbdctl", "transition-to-incremental", "0").CombinedOutput(); err == nil || !strings.Contains(string(out), "No such file") {
		t.Errorf("before it is reloaded: %v: %s", err, out)
	}
	guest.Run(t, "dbdctl", "reload-snapshot", plain, "/.datto1", "0")
	guest.Run(t, "cmp", "/dev/datto0", backup)
	autoExpand(t)
	guest.Run(t, "dbdctl", "transition-to-incremental", "0")
	// As if another boot had come, over which nothing changed.
	record := snapshot.EarlyDir + "/datto0.json"
	boot, err := sysfs.BootID()
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	guest.WriteFile(t, record, strings.Replace(string(content), boot, "00000000-0000-0000-0000-000000000000", 1))
	guest.Run(t, "dbdctl", "reload-incremental", plain, "/.datto1", "0")
	guest.WriteFile(t, "/srv/changed", strings.Repeat("again ", 64<<10))
	update(t, "/srv/.datto1", "/srv/.datto")
	guest.Run(t, "dbdctl", "destroy", "0")
	guest.Run(t, "rm", "/srv/changed", backup)
	guest.Run(t, "tidemark", "boot", "uninstall", "--track", "/dev/mapper/data")
}

// autoExpand writes more than the COW file holds, which a service makes larger meanwhile.
func autoExpand(t *testing.T) {
	t.Helper()
	guest.Run(t, "dbdctl", "reconfigure-auto-expand", "-r", "1", "2", "0")
	log := exec.Command("journalctl", "--boot", "--follow", "--output=cat", "--unit=tidemark-grow-datto0")
	said, err := log.StdoutPipe()
	if err == nil {
		err = log.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer log.Wait() //nolint:errcheck // it is killed
	defer log.Process.Kill()
	lines := bufio.NewScanner(said)
	for i, pieces := range []string{"44", "28"} { // each makes it low, of 4 MiB and of 6, and not full
		guest.Run(t, "dd", "if=/dev/urandom", fmt.Sprint("of=/srv/fill", i), "bs=64k", "count="+pieces, "conv=fsync", "status=none")
		for lines.Scan() && !strings.Contains(lines.Text(), "grown") {
			if text := lines.Text(); strings.Contains(text, "lost") || strings.Contains(text, "Failed") {
				t.Fatal(text)
			}
		}
	}
	guest.Run(t, "sh", "-c", "rm /srv/fill*")
}

// fstabAuto lets the next boot mount /srv.
func fstabAuto(t *testing.T) {
	t.Helper()
	fstab, err := os.ReadFile("/etc/fstab")
	if err != nil {
		t.Fatal(err)
	}
	guest.WriteFile(t, "/etc/fstab", strings.Replace(string(fstab), "noauto", "defaults", 1))
}

// sumPath keeps what a persistent snapshot holds.
const sumPath = "/root/sum"

// lasting takes a snapshot of the partition that is to outlive the shutdown, by the commands of dattobd.
func lasting(t *testing.T, plain string) {
	t.Helper()
	guest.Run(t, "systemctl", "daemon-reload")
	guest.Run(t, "systemctl", "start", "tidemark-era@data")
	guest.Run(t, "mount", "/dev/mapper/data", "/srv")
	dattobd(t, plain)
	if out, err := exec.Command("tidemark", "snapshot", "create", "--persistent", "/dev/mapper/root").CombinedOutput(); err == nil || !strings.Contains(string(out), "it is opened in the initramfs") {
		t.Errorf("a persistent snapshot of root: %v: %s", err, out)
	}
	guest.WriteFile(t, sumPath, guest.Sum(t, "/dev/mapper/data+datto0"))
	guest.WriteFile(t, "/srv/later", "written after the snapshot")
	if out, err := exec.Command("tidemark", "adopt", "--undo", "/dev/mapper/data").CombinedOutput(); err == nil || !strings.Contains(string(out), "snapshot destroy datto0") {
		t.Errorf("plain, with a persistent snapshot: %v: %s", err, out)
	}
}

// found finds that snapshot after the boot, and ends it; then the other one.
func found(t *testing.T, plain string) {
	t.Helper()
	t.Log(guest.Run(t, "journalctl", "--boot", "--unit", "tidemark-era@data", "--unit", "tidemark-snapshots", "--output", "cat"))
	t.Log(guest.Run(t, "tidemark", "snapshot", "status", "datto0"))
	want, err := os.ReadFile(sumPath)
	if err != nil {
		t.Fatal(err)
	}
	if got := guest.Sum(t, "/dev/mapper/data+datto0"); got != string(want) {
		t.Error("the snapshot holds something else than before the boot")
	}
	var note struct {
		Volumes []struct{ Note struct{ Still bool } }
	}
	content, err := os.ReadFile(snapshot.EarlyDir + "/datto0.json")
	if err == nil {
		err = json.Unmarshal(content, &note)
	}
	if err != nil || note.Volumes[0].Note.Still {
		t.Errorf("the mount was not noted: %v: %s", err, content)
	}
	reloaded(t, plain)
}

// TestBoot2 finds the partition adopted, undoes that while it is mounted, as of root, and is cut
// while entries are written and snapshots taken.
func TestBoot2(t *testing.T) {
	onLinear(t, "/", "root", byUUID+os.Getenv("ROOT_UUID"), byPartUUID+os.Getenv("ROOT_PARTUUID"))
	plain := guest.Disk(t, "data") + "1"
	found(t, plain)
	onLinear(t, "/srv", "data", names()...)
	if got, err := os.ReadFile("/srv/kept"); err != nil || string(got) != "kept" {
		t.Errorf("%q, %v", got, err)
	}
	if got := adopt(t, "/dev/mapper/data", "--undo"); got != "next-boot" {
		t.Fatalf("a mounted device, when it is undone, is %s", got)
	}
	shake(t, plain)
	onLinear(t, "/srv", "data", names()...)
	fill(t)
	snapshotOfRoot(t, "/dev/mapper/data")
	filler = nil
	debug.FreeOSMemory() // for two programs at once, when the power is cut
	if err := os.MkdirAll("/boot/grub", 0o755); err != nil {
		t.Fatal(err)
	}
	guest.WriteFile(t, "/boot/grub/grub.cfg", "linux /boot/vmlinuz root=/dev/mapper/root ro\n")
	if out, err := exec.Command("tidemark", "adopt", "--undo", "/dev/mapper/root").CombinedOutput(); err == nil || !strings.Contains(string(out), "/boot/grub/grub.cfg:1: /dev/mapper/root") {
		t.Errorf("%v: %s", err, out)
	}
	guest.WriteFile(t, "/boot/grub/grub.cfg", "linux /boot/vmlinuz root=UUID="+os.Getenv("ROOT_UUID")+" ro\n")
	if got := adopt(t, "/dev/mapper/root", "--undo"); got != "next-boot" {
		t.Fatalf("root, when it is undone, is %s", got)
	}
	onLinear(t, "/", "root", byUUID+os.Getenv("ROOT_UUID"), byPartUUID+os.Getenv("ROOT_PARTUUID"))
	guest.Run(t, "sync")
	go func() {
		for {
			guest.Run(t, "tidemark", "snapshot", "create", "--name", "more", "--store", "/run/more", "--size", "1M", "--reserve", "1M", "--max-freeze", "1m", "/dev/mapper/data")
			guest.Run(t, "tidemark", "snapshot", "destroy", "more")
		}
	}()
	// The other partition is mounted, so that only its entry is written.
	other := guest.Disk(t, "data") + "2"
	for i := 0; ; i++ {
		if i == 2 {
			go guest.Tell(t, "cut")
		}
		adopt(t, other, "--name", "other")
		adopt(t, other, "--undo")
	}
}

// TestBoot3 finds root and the partition plain, and the other one as its entry says.
func TestBoot3(t *testing.T) {
	system := guest.Disk(t, "system") + "1"
	leadTo(t, system, byUUID+os.Getenv("ROOT_UUID"), byPartUUID+os.Getenv("ROOT_PARTUUID"))
	if source := guest.Run(t, "findmnt", "-no", "SOURCE", "/"); source != system {
		t.Errorf("root is mounted from %s, not from %s", source, system)
	}
	guest.Run(t, "systemctl", "start", "tidemark-snapshots") // it may be under way
	guest.Run(t, "journalctl", "--sync")
	said := guest.Run(t, "journalctl", "--boot", "--unit", "tidemark-snapshots", "--output", "cat")
	left, _ := filepath.Glob("/.tidemark-*")
	more, _ := filepath.Glob("/srv/.tidemark-*")
	records, _ := filepath.Glob("/var/lib/tidemark/snapshots/*")
	if left = append(left, append(more, records...)...); len(left) > 0 || !strings.Contains(said, "the snapshot root is over, because the machine was booted") {
		t.Errorf("left behind: %v; %s", left, said)
	}
	plain := guest.Disk(t, "data") + "1"
	leadTo(t, plain, names()...)
	source := guest.Run(t, "findmnt", "-no", "SOURCE", "/srv")
	if source != plain {
		t.Errorf("/srv is mounted from %s, not from %s", source, plain)
	}
	t.Logf("/mnt is mounted from %s", guest.Run(t, "findmnt", "-no", "SOURCE", "/mnt"))
	adopt(t, guest.Disk(t, "data")+"2", "--name", "other") // it has an entry, or the cut came while it had none
	guest.Run(t, "tidemark", "boot", "install")
	var status struct {
		Devices []struct{ Name string }
		Files   []struct{ Path, State string }
	}
	out, _ := exec.Command("tidemark", "boot", "status", "--json").Output() // the images are stale
	if err := json.Unmarshal(out, &status); err != nil {
		t.Fatal(err)
	}
	for _, f := range status.Files {
		if f.State != "same" {
			t.Errorf("%s is %s", f.Path, f.State)
		}
	}
	t.Logf("%+v", status.Devices)
}

// snapshotOfRoot takes a snapshot "root" of the running root, on which the command lies, and of other
// devices, with nothing of them in memory and root in use. The image stays the same, and is checked.
func snapshotOfRoot(t *testing.T, others ...string) {
	t.Helper()
	guest.WriteFile(t, "/root/file", "before")
	guest.Run(t, "sync")
	guest.WriteFile(t, "/proc/sys/vm/drop_caches", "3")
	calm := instant.Churn(t, "/root")
	defer calm()
	guest.Run(t, "tidemark", append([]string{"snapshot", "create", "--name", "root", "--size", "12M", "--reserve", "1M", "--max-freeze", "1m", "/dev/mapper/root"}, others...)...)
	guest.WriteFile(t, "/root/file", "after")
	before := guest.Sum(t, "/dev/mapper/root+root")
	guest.WriteFile(t, "/proc/sys/vm/drop_caches", "3")
	guest.Run(t, "dd", "if=/dev/urandom", "of=/root/more", "bs=64k", "count=16", "conv=fsync", "status=none")
	calm()
	if now := guest.Sum(t, "/dev/mapper/root+root"); now != before {
		t.Error("the image of root changes")
	}
	guest.Run(t, "tidemark", "snapshot", "status", "root")
	guest.Run(t, "e2fsck", "-fn", "/dev/mapper/root+root")
	there := t.TempDir()
	guest.Run(t, "mount", "-o", "ro,noload", "/dev/mapper/root+root", there)
	defer guest.Run(t, "umount", there)
	if got, err := os.ReadFile(there + "/root/file"); err != nil || string(got) != "before" {
		t.Errorf("%q, %v", got, err)
	}
}

// fill takes memory until little is left.
func fill(t *testing.T) {
	t.Helper()
	const left = 48 << 10 // KiB
	content, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	var total, free, available int
	if _, err := fmt.Sscanf(string(content), "MemTotal: %d kB\nMemFree: %d kB\nMemAvailable: %d kB", &total, &free, &available); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d KiB of %d are available", available, total)
	if total > 256<<10 {
		t.Error("the guest has more memory than it should")
	}
	if available > left {
		filler = make([]byte, (available-left)<<10)
		guest.Scramble(filler)
	}
}

// filler keeps fill's memory in use.
var filler []byte

// mirror mirrors to one image, and fails unless that ends with the code.
func mirror(t *testing.T, code int, args ...string) {
	t.Helper()
	args = append([]string{"--state-dir", "/run/state", "mirror", "--tracker", "scan", "--view", "offline"}, append(args, "/run/data.img")...)
	cmd := exec.Command("tidemark", args...)
	out, _ := cmd.CombinedOutput()
	t.Logf("%v: %s", args, out)
	if cmd.ProcessState.ExitCode() != code {
		t.Errorf("%v ended with %v, want %d", args, cmd.ProcessState, code)
	}
}

// adopt runs "tidemark adopt" and returns the outcome.
func adopt(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("tidemark", append([]string{"adopt", "--json"}, args...)...).Output()
	var r struct{ Outcome, Error string }
	if jsonErr := json.Unmarshal(out, &r); jsonErr != nil || err != nil {
		t.Fatalf("adopt %v: %v, %v: %s", args, err, jsonErr, out)
	}
	return r.Outcome
}

func refuse(t *testing.T, device, want string) {
	t.Helper()
	out, err := exec.Command("tidemark", "adopt", device).CombinedOutput()
	if err == nil || !strings.Contains(string(out), want) {
		t.Errorf("adopt %s: %v, want %q:\n%s", device, err, want, out)
	}
}

// shake makes udev look at all devices again, and at the plain one last.
func shake(t *testing.T, plain string) {
	t.Helper()
	guest.Run(t, "udevadm", "trigger", "--settle", "--subsystem-match=block")
	guest.Run(t, "udevadm", "trigger", "--settle", "--action=change", plain)
}

// onLinear fails unless what is mounted at point is on the linear device of that name, all
// links lead there, and the plain device under it cannot be mounted.
func onLinear(t *testing.T, point, name string, links ...string) {
	t.Helper()
	var at, dev unix.Stat_t
	if err := unix.Stat(point, &at); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat("/dev/mapper/"+name, &dev); err != nil {
		t.Fatal(err)
	}
	if at.Dev != dev.Rdev {
		t.Errorf("%s is on %d:%d, not on %s", point, unix.Major(at.Dev), unix.Minor(at.Dev), name)
	}
	leadTo(t, "/dev/mapper/"+name, links...)
	node, err := filepath.EvalSymlinks("/dev/mapper/" + name)
	if err != nil {
		t.Fatal(err)
	}
	below, err := os.ReadDir("/sys/block/" + filepath.Base(node) + "/slaves")
	if err != nil || len(below) != 1 {
		t.Fatalf("%s lies on %v, %v", name, below, err)
	}
	if err := unix.Mount("/dev/"+below[0].Name(), t.TempDir(), "ext4", unix.MS_RDONLY, ""); err == nil {
		t.Errorf("%s could be mounted beside %s", below[0].Name(), name)
	}
}

// leadTo fails unless all links lead to the device.
func leadTo(t *testing.T, device string, links ...string) {
	t.Helper()
	want, err := filepath.EvalSymlinks(device)
	if err != nil {
		t.Error(err)
	}
	for _, link := range links {
		if got, err := filepath.EvalSymlinks(link); err != nil || got != want {
			t.Errorf("%s leads to %s, not to %s (%v)", link, got, want, err)
		}
	}
}
