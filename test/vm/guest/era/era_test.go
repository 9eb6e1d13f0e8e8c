//go:build linux

// Package era_test runs in guests only (see package guest): era devices that
// linux/dmera and the commands set up, on the kernel's own dm-era, beside dmsetup and
// the era tools of thin-provisioning-tools.
package era_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"strings"
	"testing"

	"tidemark/block"
	"tidemark/format/era"
	"tidemark/linux/dm"
	"tidemark/linux/dmera"
	"tidemark/linux/reexec"
	"tidemark/test/vm/guest"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
)

// holdEnv names a device whose snapshot this process is to take and never to drop.
const holdEnv = "HOLD_SNAPSHOT_OF"

func TestMain(m *testing.M) {
	reexec.Main(dmera.Step)
	if name := os.Getenv(holdEnv); name != "" {
		holdSnapshot(name)
	}
	guest.Main(m)
}

// control is a connection to device-mapper for a test.
func control(t testing.TB) *dm.Control {
	t.Helper()
	ctl, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ctl.Close() })
	return ctl
}

// create makes an era device of the disks "data" and "meta", and removes it at the
// end of the test.
func create(t testing.TB, name string, blockSize int64) *dmera.Device {
	t.Helper()
	return createOn(t, name, guest.Disk(t, "data"), blockSize)
}

func createOn(t testing.TB, name, data string, blockSize int64) *dmera.Device {
	t.Helper()
	ctl := control(t)
	d, err := dmera.Create(t.Context(), ctl, dmera.CreateOptions{
		Name: name, Data: data, Meta: guest.Disk(t, "meta"), BlockSize: blockSize, Force: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removed(t, ctl, name) })
	t.Cleanup(func() { d.Close() })
	return d
}

// removed removes a device if it is there, and checks what it left.
func removed(t testing.TB, ctl *dm.Control, name string) {
	t.Helper()
	if _, err := ctl.Info(name); errors.Is(err, dm.ErrNotFound) {
		return
	}
	guest.Run(t, "dmsetup", "remove", "--retry", name)
	clean(t, guest.Disk(t, "meta"))
}

// clean fails when a metadata device that nobody uses has a fault.
func clean(t testing.TB, path string) era.Superblock {
	t.Helper()
	dev, err := block.Open(path, block.Options{Direct: true, Exclusive: true})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	sum, err := era.Check(dev, dev.Size(), func(f *era.Fault) { t.Errorf("metadata %s: %v", path, f) })
	if err != nil {
		t.Fatal(err)
	}
	return sum.Superblock
}

// status asks the kernel, and fails when dmsetup is told otherwise.
func status(t testing.TB, d *dmera.Device) dmera.Status {
	t.Helper()
	s, err := d.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	held := "-"
	if s.HeldSnapshot != 0 {
		held = fmt.Sprint(s.HeldSnapshot)
	}
	want := fmt.Sprintf("0 %d era %d %d/%d %d %s", d.Size()/512, s.MetadataBlockSize/512, s.UsedMetadataBlocks, s.TotalMetadataBlocks, s.Era, held)
	got := guest.Run(t, "dmsetup", "status", d.Name())
	// How much is in use changes while eras are digested.
	if a, b := strings.Fields(got), strings.Fields(want); len(a) != len(b) || strings.Join(a[5:], " ") != strings.Join(b[5:], " ") {
		t.Errorf("dmsetup status %q, ours is %q", got, want)
	}
	return s
}

// tidemark runs the command and returns its output and exit code.
func tidemark(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, said strings.Builder
	cmd := exec.Command("tidemark", args...)
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), said.String(), cmd.ProcessState.ExitCode()
}

// works is tidemark, for a command that must work.
func works(t testing.TB, args ...string) string {
	t.Helper()
	out, said, code := tidemark(t, args...)
	if code != 0 {
		t.Fatalf("tidemark %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, said)
	}
	return out
}

// holdSnapshot never returns: the process is there to be killed.
func holdSnapshot(name string) {
	ctl, err := dm.Open()
	if err != nil {
		log.Fatal(err)
	}
	d, err := dmera.Open(ctl, name, dmera.Options{})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := d.TakeSnapshot(context.Background()); err != nil {
		log.Fatal(err)
	}
	fmt.Println("held")
	_, _ = io.Copy(io.Discard, os.Stdin) // nobody writes to it, nobody closes it
	os.Exit(1)
}
