package vm

import (
	"flag"
	"fmt"
	"regexp"
	"strconv"
	"testing"
)

var timesRounds = flag.Int("boot-times", 0, "measure as often what tracking adds to boots and shutdowns")

// How much longer a boot and a shutdown are with tracking, by the guest's own clock: figures for
// docs/benchmarks.md. The boots and shutdowns of a Debian without it, with it for a data disk, and
// with it for the disk of root as well take turns.
func TestBootTimes(t *testing.T) {
	if *timesRounds == 0 {
		t.Skip("a measurement: -boot-times N")
	}
	program, command := Build(t, "tidemark/test/vm/guest/reboots"), BuildTidemark(t)
	var systems []func(round int)
	for _, tracked := range [][]string{nil, {"data"}, {"data", "system"}} {
		d := NewDebian(t, Linux61, InitramfsTools, program)
		d.InstallTidemark(command)
		d.Write("/etc/fstab", rootDisk+" / ext4 defaults 0 1\n/dev/disk/by-id/virtio-data /srv ext4 defaults 0 2\n")
		for _, disk := range tracked {
			args := []string{"boot", "install", "--root", d.Dir, "--track", "/dev/disk/by-id/virtio-" + disk}
			if disk == "system" {
				args = append(args, "--stage", "initramfs")
			}
			host(t, command, args...)
		}
		system, root := d.Disk(d.initramfs(InitramfsTools))
		system.Args = "root=" + rootDisk + " ro systemd.show_status=0"
		data := NewDisk(t, "data", 64<<20)
		host(t, "mkfs.ext4", "-q", data.Path)
		systems = append(systems, func(round int) {
			r := Run(t, Config{
				Kernel: Linux61, System: &system, MemMB: 768, Timeout: bootTimeout, Disks: []Disk{root, data},
				Tests: "^TestTimes$", Counting: true,
			}, program)
			up, down, off := said(t, r.Console, "rig: up"), said(t, r.Console, "rig: down"), said(t, r.Console, "reboot: ")
			t.Logf("round %d, tracked %v: boot %.2f s, shutdown %.2f s", round, tracked, up, off-down)
		})
	}
	for round := range 1 + *timesRounds { // before the first one nothing was saved
		for _, boot := range systems {
			boot(round)
		}
	}
}

// said is when the kernel's log has these words, in seconds.
func said(t *testing.T, console, words string) float64 {
	t.Helper()
	found := regexp.MustCompile(fmt.Sprintf(`\[ *([0-9.]+)\] %s`, words)).FindStringSubmatch(console)
	if found == nil {
		t.Fatalf("the console does not say %q", words)
	}
	at, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return at
}
