//go:build linux

// Package eraplan_test runs in guests only (see package guest): what format/era
// computes of the metadata that a device needs is what the kernel needs.
package eraplan_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/format/era"
	"tidemark/linux/dm"
	"tidemark/test/vm/guest"
)

func TestMain(m *testing.M) { guest.Main(m) }

const (
	dataName = "plan-data"
	metaName = "plan-meta"
	eraName  = "plan-era"
	cycles   = 10
	// busyEras is how many eras busy begins: the kernel may not have digested any of
	// them when the last one ends.
	busyEras = 2 * cycles
)

// rig is an era device on a device of zeros, as large as one likes, with metadata of
// any size.
type rig struct {
	t     *testing.T
	ctl   *dm.Control
	disk  string
	zero  []byte
	tries int
}

func newRig(t *testing.T) *rig {
	t.Helper()
	guest.Modprobe(t, "dm-era", "dm-zero")
	ctl, err := dm.Open()
	must(t, err)
	t.Cleanup(func() { must(t, ctl.Close()) })
	r := &rig{t: t, ctl: ctl, disk: guest.Disk(t, "meta"), zero: make([]byte, era.BlockSize)}
	for _, name := range []string{dataName, metaName} {
		_, err := ctl.Create(name, "")
		must(t, err)
		t.Cleanup(func() { must(t, ctl.Remove(name, dm.RemoveOptions{Patience: time.Minute})) })
	}
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// table gives a device another table.
func (r *rig) table(name string, bytes int64, kind, params string) error {
	table := []dm.Target{{Len: uint64(bytes / dm.SectorSize), Type: kind, Params: params}}
	if _, err := r.ctl.Load(name, table, dm.LoadOptions{}); err != nil {
		return err
	}
	_, err := r.ctl.Resume(name)
	return err
}

// size is what is tried: a device, and how much metadata it gets.
type size struct {
	device  int64 // bytes
	sectors uint32
}

func (s size) String() string {
	return fmt.Sprintf("%d KiB in blocks of %d sectors", s.device>>10, s.sectors)
}

// try makes an era device with so many bytes of metadata, does work with it, and
// removes it. The error is that of the kernel.
func (r *rig) try(s size, meta int64, work func() error) (err error) {
	r.t.Helper()
	r.tries++
	must(r.t, r.table(metaName, meta, "linear", r.disk+" 0"))
	r.write("/dev/mapper/"+metaName, 0, r.zero)
	_, err = r.ctl.Create(eraName, "")
	must(r.t, err)
	defer func() { must(r.t, r.ctl.Remove(eraName, dm.RemoveOptions{Patience: time.Minute})) }()
	params := fmt.Sprintf("/dev/mapper/%s /dev/mapper/%s %d", metaName, dataName, s.sectors)
	if err := r.table(eraName, s.device, "era", params); err != nil {
		return err
	}
	return work()
}

// write writes to a device, past the page cache.
func (r *rig) write(path string, at int64, data []byte) {
	r.t.Helper()
	must(r.t, write(path, at, data))
}

func write(path string, at int64, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_SYNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(data, at)
	return err
}

func (r *rig) send(message string) error {
	_, err := r.ctl.Message(eraName, 0, message)
	return err
}

// snapshots takes and drops metadata snapshots on an idle device.
func (r *rig) snapshots() error {
	for range cycles {
		if err := r.send("take_metadata_snap"); err != nil {
			return err
		}
		if err := r.send("drop_metadata_snap"); err != nil {
			return err
		}
	}
	return nil
}

// busy ends an era, writes all over the device, and takes and drops a snapshot.
func (r *rig) busy(s size) func() error {
	return func() error {
		for n := range int64(cycles) {
			if err := r.send("checkpoint"); err != nil {
				return err
			}
			if err := r.writes(s, n); err != nil {
				return err
			}
			if err := r.send("take_metadata_snap"); err != nil {
				return err
			}
			if err := r.send("drop_metadata_snap"); err != nil {
				return err
			}
		}
		return nil
	}
}

// writes marks some blocks of the device, others in each of the cycles.
func (r *rig) writes(s size, n int64) error {
	const count = 16
	step := s.device / count &^ (era.BlockSize - 1)
	for i := range int64(count) {
		at := (i*step + n*int64(s.sectors)*dm.SectorSize) % (s.device - era.BlockSize + 1) &^ (era.BlockSize - 1)
		if err := write("/dev/mapper/"+eraName, at, r.zero); err != nil {
			return err
		}
	}
	return nil
}

// least is the smallest metadata in bytes with which work succeeds, at least low.
func (r *rig) least(s size, low, high int64, work func() error) int64 {
	r.t.Helper()
	for r.try(s, high, work) != nil {
		low, high = high+era.BlockSize, 2*high
	}
	for low < high {
		middle := (low + high) / 2 / era.BlockSize * era.BlockSize
		if r.try(s, middle, work) == nil {
			high = middle
		} else {
			low = middle + era.BlockSize
		}
	}
	return high
}

func nothing() error { return nil }

// The kernel creates a device with the size that the plan calls the least, and with
// a block less it does not; snapshots work from some size on that lies between the
// plan's least and its worst, and whatever is done works with the worst.
func TestPlanIsWhatTheKernelNeeds(t *testing.T) {
	r := newRig(t)
	for _, s := range sizes() {
		t.Run(s.String(), func(t *testing.T) {
			r.t = t
			began := time.Now()
			p, err := era.NewPlan(s.device, s.sectors, era.PlanOptions{})
			must(t, err)
			must(t, r.table(dataName, s.device, "zero", ""))
			if err := r.try(s, p.Create, nothing); err != nil {
				t.Errorf("with the %d KiB that are the least it cannot be created: %v", p.Create>>10, err)
			}
			if err := r.try(s, p.Create-era.BlockSize, nothing); err == nil {
				t.Errorf("with less than %d KiB it can be created", p.Create>>10)
			}
			if err := r.try(s, p.Worst, r.snapshots); err != nil {
				t.Errorf("with %d KiB: %v", p.Worst>>10, err)
			}
			if err := r.try(s, p.SnapshotsLeast-era.BlockSize, r.snapshots); err == nil {
				t.Errorf("with less than %d KiB snapshots can be taken", p.SnapshotsLeast>>10)
			}
			busy, err := era.NewPlan(s.device, s.sectors, era.PlanOptions{Undigested: busyEras})
			must(t, err)
			if s.sectors != 8192 { // a device half as large has as many blocks of 4096, and shows the same
				if err := r.try(s, busy.Worst, r.busy(s)); err != nil {
					t.Errorf("with %d KiB under load: %v", busy.Worst>>10, err)
				}
			}
			t.Logf("create %d, snapshots %d to %d, worst %d KiB; %v", p.Create>>10,
				p.SnapshotsLeast>>10, p.SnapshotsMost>>10, busy.Worst>>10, time.Since(began).Round(time.Millisecond))
		})
	}
}

// Searched for without knowing the plan, the least sizes are those of the plan. What
// writes need is not searched for: running out of metadata while eras are digested has
// stopped Linux 6.1 in dm-bufio, when the device was removed.
func TestLeastSizesBySearch(t *testing.T) {
	r := newRig(t)
	for _, s := range []size{{4 << 20, 4096}, {1 << 30, 4096}, {16 << 30, 4096}, {64 << 30, 8192}, {1 << 30, 128}} {
		t.Run(s.String(), func(t *testing.T) {
			r.t, r.tries = t, 0
			p, err := era.NewPlan(s.device, s.sectors, era.PlanOptions{})
			must(t, err)
			must(t, r.table(dataName, s.device, "zero", ""))
			create := r.least(s, era.BlockSize, 64<<10, nothing)
			idle := r.least(s, create, 2*create, r.snapshots)
			t.Logf("create %d, %d snapshots %d KiB in %d tries", create>>10, cycles, idle>>10, r.tries)
			if create != p.Create {
				t.Errorf("create: %d KiB, the plan says %d", create>>10, p.Create>>10)
			}
			if idle < p.SnapshotsLeast || idle > p.Worst {
				t.Errorf("snapshots: %d KiB, the plan says %d to %d, at worst %d", idle>>10, p.SnapshotsLeast>>10, p.SnapshotsMost>>10, p.Worst>>10)
			}
		})
	}
}

// sizes are 4 MiB to 16 TiB in the tutorial's blocks of 4096 sectors, from 1 or 2 GiB on each second
// one that it lists; some of them in blocks twice as large, of which a device has as many as one half its size has
// of the others; and some others.
func sizes() []size {
	devices := []int64{4 << 20, 64 << 20, 512 << 20}
	for device := int64(1<<30) << rand.IntN(2); device <= 16<<40; device *= 4 {
		devices = append(devices, device)
	}
	var all []size
	for _, device := range devices {
		all = append(all, size{device, 4096})
	}
	return append(all, size{4 << 20, 8192}, size{64 << 30, 8192}, size{16 << 40, 8192},
		size{4 << 20, 128}, size{1 << 30, 128}, size{16 << 30, 128}, size{5<<30 + 4096, 4096})
}
