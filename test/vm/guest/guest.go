//go:build linux

// Package guest holds what tests inside a VM guest share, and the rig's own guest
// tests. Its tests run in guests only: on the host the test binary ends at once
// without running any, so that a plain go test of everything passes by; the rig fails a
// guest that ran none.
//
// A package of guest tests calls Main from its TestMain.
package guest

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/test/vm/wire"
)

// Inside reports whether this is a guest.
func Inside() bool {
	return os.Getenv(wire.Marker) != ""
}

// Main runs the tests in a guest, and none elsewhere. Call it as the last thing of TestMain.
func Main(m *testing.M) {
	if !Inside() {
		fmt.Println("guest tests: run by test/vm")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// StepBack lets everybody else go first on the guest's one CPU, from now on. It is for
// goroutines that keep a disk busy while something is tested.
func StepBack() {
	runtime.LockOSThread()
	// On Linux this is of the calling thread. There is no harm when it fails.
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, Niceness)
}

// Niceness is that of a load. It still gets a tenth of the CPU, so that what waits for
// its locks gets on.
const Niceness = 10

// Disk returns the device of the guest's disk with that name (its serial number).
func Disk(t testing.TB, name string) string {
	t.Helper()
	disk, err := FindDisk(name)
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

// FindDisk is Disk for use outside of tests.
func FindDisk(name string) (string, error) {
	for _, pattern := range [...]string{"/sys/block/*/serial", "/sys/block/*/device/serial", "/sys/block/*/device/vpd_pg80"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		for _, file := range files {
			serial, err := os.ReadFile(file)
			if err != nil || !strings.HasSuffix(strings.TrimSpace(string(serial)), name) {
				continue
			}
			disk := strings.Split(file, "/")[3]
			// The paths of an NVMe disk are hidden and have no device file.
			if hidden, _ := os.ReadFile("/sys/block/" + disk + "/hidden"); string(hidden) != "1\n" {
				return "/dev/" + disk, nil
			}
		}
	}
	return "", fmt.Errorf("the guest has no disk %s", name)
}

// Run runs a program, fails the test if it fails, and returns its output.
func Run(t testing.TB, program string, args ...string) string {
	t.Helper()
	var stderr strings.Builder
	cmd := exec.Command(program, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", program, strings.Join(args, " "), err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// Kernel reports whether the guest's kernel is of that release or a newer one. A test may be
// skipped for what a kernel is too old to have.
func Kernel(t testing.TB, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var have [2]int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &have[0], &have[1]); err != nil {
		t.Fatal(err)
	}
	return have[0] > major || have[0] == major && have[1] >= minor
}

// Modprobe loads kernel modules.
func Modprobe(t testing.TB, modules ...string) {
	t.Helper()
	Run(t, "modprobe", append([]string{"-a"}, modules...)...)
}

// Mapper creates a device-mapper device with this table, removes it at the end of the
// test, and returns its path.
func Mapper(t testing.TB, name, table string) string {
	t.Helper()
	Run(t, "dmsetup", "create", name, "--table", table)
	t.Cleanup(func() { Run(t, "dmsetup", "remove", "--retry", name) })
	return "/dev/mapper/" + name
}

// Loop attaches a loop device to a file or device with these options of losetup,
// detaches it at the end of the test, and returns its path.
func Loop(t testing.TB, file string, options ...string) string {
	t.Helper()
	Modprobe(t, "loop")
	dev := Run(t, "losetup", append(options, "--find", "--show", file)...)
	t.Cleanup(func() { Run(t, "losetup", "--detach", dev) })
	return dev
}

// OpenDirect opens a device for writing past the page cache, until the end of the test.
func OpenDirect(t testing.TB, path string) *block.Device {
	t.Helper()
	d, err := block.Open(path, block.Options{Write: true, Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// Scramble fills p, whose length is a multiple of 8, with random bytes.
func Scramble(p []byte) {
	for at := 0; at < len(p); at += 8 {
		binary.LittleEndian.PutUint64(p[at:], rand.Uint64())
	}
}

// Sum is a checksum of what a file holds, or a device now, on the disk. It is FNV-1a,
// but of words of 8 bytes: an emulated CPU takes seconds for the SHA of a small disk.
func Sum(t testing.TB, path string) string {
	t.Helper()
	flags := os.O_RDONLY
	if strings.HasPrefix(path, "/dev/") {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const prime = 0x100000001b3
	sum, p := uint64(0xcbf29ce484222325), block.AlignedBuffer(1<<20)
	for {
		n, err := io.ReadFull(f, p)
		clear(p[n:])
		for at := 0; at < n; at += 8 {
			sum = (sum ^ binary.LittleEndian.Uint64(p[at:])) * prime
		}
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			return fmt.Sprintf("%016x", sum)
		default:
			t.Fatal(err)
		}
	}
}

// Sectors is the size of a block device in units of 512 bytes.
func Sectors(t testing.TB, device string) string {
	t.Helper()
	return Run(t, "blockdev", "--getsz", device)
}

// Tell tells the host something, in one line, and returns its answer. It does not
// return when the host cuts the power.
func Tell(t testing.TB, event string) string {
	t.Helper()
	port, err := talkPort()
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	if _, err := fmt.Fprintln(port, event); err != nil {
		t.Fatal(err)
	}
	answer, err := bufio.NewReader(port).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(answer, "\n")
}

func talkPort() (*os.File, error) {
	entries, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		name, err := os.ReadFile(entry)
		if err == nil && strings.TrimSpace(string(name)) == wire.PortTalk {
			return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(entry)), os.O_RDWR, 0)
		}
	}
	return nil, fmt.Errorf("the guest has no port %s", wire.PortTalk)
}

// WriteFile writes a file, such as an attribute in /sys.
func WriteFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
