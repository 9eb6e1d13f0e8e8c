// Package vm runs Go tests inside real Debian kernels: it boots a kernel in QEMU with
// a test binary as the guest's only work and reports the guest's tests as subtests.
//
// A guest is an emulated machine (TCG, no KVM needed) whose root is an initramfs of
// the tools in peers and modules and the test binary; its disks are image files on the
// host. One boot serves all tests of a package. What the tests leave in the guest's
// /out comes back, and a test may talk to the host (see package guest). At most two
// guests run at a time on one machine, in whatever packages.
//
// # Power cuts
//
// A guest's power is cut by killing QEMU with SIGKILL: no guest code runs any more, no
// request in flight is answered, and memory is gone. What the disks then hold depends
// on the disk:
//
//   - A plain disk keeps every write that QEMU answered or had handed to the host: the
//     host's page cache survives. It is a disk without a write cache. A request in
//     flight may be wholly, partly or not at all on it.
//   - A volatile disk also loses a random part, chosen by a printed seed, of what was
//     written since the guest last flushed; see package volatile. Its power can be
//     made to go at a chosen write.
//
// Not simulated: a flush that lies, bits that decay, a sector torn inside, and of
// several unflushed writes to one sector any but the last surviving.
//
// What a test needs is fetched by scripts/vm-setup; without it tests fail and say so.
package vm

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Kernel is a kernel series that scripts/vm-setup fetches.
type Kernel string

// The kernels of the rig: Debian's cloud kernels of bullseye, bookworm, its backports and, as
// the newest, trixie's backports on the day on which the rig was set up.
const (
	Linux510 Kernel = "5.10"
	Linux61  Kernel = "6.1"
	Linux612 Kernel = "6.12"
	Newest   Kernel = "newest"
)

// Kernels lists them all, oldest first.
func Kernels() []Kernel {
	return []Kernel{Linux510, Linux61, Linux612, Newest}
}

// Config describes a guest. The zero value is a guest of the newest kernel without disks.
type Config struct {
	Kernel    Kernel
	Disks     []Disk
	MemMB     int               // 0: 640; at most 1024
	ScratchMB int               // size of an ext4 on /tmp, on a disk of its own; 0: /tmp is in memory
	Tests     string            // pattern of the tests to run, as for go test -run; "": all
	Skip      string            // pattern of the tests not to run, as for go test -skip; "": none
	Modules   []string          // kernel modules to load before the tests, of those in the guest
	Programs  []string          // further programs of the package tree to pack, such as "fio"
	Files     map[string]string // path in the guest → path of a file on the host
	Env       []string          // added to the tests' environment
	Timeout   time.Duration     // of the whole run; 0: 5 minutes
	System    *System           // what is booted in place of the rig's own initramfs; nil: that one
	End       string            // how the system ends after its tests, one of wire's Ends; "": it reboots
	Next      *Stage            // what comes after End in the same machine; nil: that ends
	Counting  bool              // the guest's clock counts instructions, one a nanosecond, beside the time for which it waits
	NoTests   bool              // the guest is to end by itself without any test; only its console counts

	// OnEvent answers what a guest's test tells the host (guest.Tell). It is called
	// from one goroutine, and may cut the power, in which case the answer is void.
	OnEvent func(m *Machine, event string) (answer string)
}

// Stage is what a system runs after a reboot that leaves the machine on: the same tests.
type Stage struct {
	Env  []string // in place of Config.Env
	End  string   // as Config.End
	Next *Stage
}

// Bus is how a disk is attached.
type Bus string

// The buses; the zero value is virtio-blk.
const (
	VirtioBlk     Bus = "virtio-blk"
	VirtioSCSI    Bus = "virtio-scsi"    // takes SCSI passthrough
	NVMe          Bus = "nvme"           // takes discards of several ranges
	NVMeMultipath Bus = "nvme-multipath" // a disk without requests, above its one path
)

// Disk is one disk of a guest. It may be given to one guest after another.
type Disk struct {
	Name string // its serial number in the guest; at most 20 letters
	Path string // raw image on the host
	Bus  Bus

	// Volatile disks lose unflushed data in a power cut, chosen by Seed.
	Volatile bool
	Seed     uint64
	// CutAtWrite cuts the power when this write (from 1) arrives at a volatile disk;
	// 0 never does.
	CutAtWrite int
}

// NewDisk returns a disk of size bytes, empty and sparse, in the test's own folder.
func NewDisk(t testing.TB, name string, size int64) Disk {
	t.Helper()
	path := filepath.Join(t.TempDir(), name+".img")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return Disk{Name: name, Path: path}
}

// on returns the disk on another bus.
func (d Disk) on(bus Bus) Disk {
	d.Bus = bus
	return d
}

// Result is what is left of a guest.
type Result struct {
	Files   string // folder on the host with the guest's /out and dmesg; empty after a cut
	Console string // what the kernel said on the console
	Cut     bool   // the power was cut
	Boot    time.Duration
	Total   time.Duration
	Tests   int              // that ran, subtests included
	Writes  map[string]int   // of each volatile disk, by name
	Lost    map[string]int64 // bytes each volatile disk lost in the cut, by name
}

// Program is a test binary for guests.
type Program struct {
	Path     string // on the host
	Package  string
	testdata string // folder on the host; "": none
}
