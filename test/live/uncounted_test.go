package live_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// asUncountedMD runs a command in a mount namespace where the loop device $1 has in
// sysfs what an md device has. Its reads and writes are not counted in truth, as since
// Linux 6.11 those of dm and md with queue/iostats 0.
const asUncountedMD = `set -e
disk=/sys/devices/virtual/block/$1 true=$2; shift 2
mount --bind "$disk" "$true"
mount -t tmpfs none "$disk"
ln -s "$true"/* "$disk"
rm "$disk/mq"
mkdir "$disk/md"
exec "$@"`

// Freezing holds up the filesystem, but who writes past it does not show: tracking has
// no clean beginning, however long the writers pause.
func TestDiskWhoseWritesInFlightAreNotCountedIsReadInFull(t *testing.T) {
	dir := scratch(t)
	dev := loop(t, folder(t, dir, "source"), 64*mib)
	fill(t, mount(t, "ext4", dev, dir)+"/file", 0, mib)
	name := filepath.Base(dev)
	iostats := "/sys/block/" + name + "/queue/iostats"
	if err := os.WriteFile(iostats, []byte("0"), 0o200); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(iostats, []byte("1"), 0o200) }) // the device keeps it when it is detached
	p := newProgram(t, dir).through("unshare", "--mount", "--propagation", "private",
		"sh", "-c", asUncountedMD, "sh", name, folder(t, dir, "sysfs"))
	image := filepath.Join(dir, "mirror.img")
	for _, args := range [][]string{{"mirror", "--tracker", "bpf", dev, image}, {"track", "start", dev}} {
		if f := p.exits(t, exitError, []string{"echo 1 >" + iostats}, args...); strings.Contains(f.err, "pause the writers") {
			t.Errorf("%q: %s", args, f.err)
		}
	}
	f := p.exits(t, exitOK, []string{iostats}, "mirror", "--json", dev, image)
	if r := f.reports(t)[0]; r.Tracker != "scan" || r.View != "freeze" {
		t.Errorf("%+v", r)
	}
	checkFilesystem(t, "ext4", image, dir)
}
