//go:build linux

package faults_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"tidemark/test/vm/guest"
)

// A fault is what dm-flakey does to a part of a disk; see
// Documentation/admin-guide/device-mapper/dm-flakey.rst.
type fault string

const (
	failWrites fault = "1 error_writes"
	dropWrites fault = "1 drop_writes" // reports success, flushes included
	// damageWrites sets the 100th byte of every write to 66.
	damageWrites fault = "5 corrupt_bio_byte 100 w 66 0"
	// failReads came with Linux 6.5; before, what cannot be read can neither be
	// written.
	failReads fault = "1 error_reads"
)

// flaky is a device-mapper device over the start of a disk that fails when told to.
type flaky struct {
	old  bool // the kernel's dm-flakey cannot fail reads alone
	path string
	name string
	disk string
	size int64 // bytes
	dir  string
}

// newFlaky returns one that works, and holds zeros.
func newFlaky(t *testing.T, name, disk string, size int64) *flaky {
	t.Helper()
	guest.Modprobe(t, "dm-flakey")
	d := &flaky{path: device(t, name, disk, size), name: name, disk: disk, size: size, dir: t.TempDir()}
	d.old = exec.Command("dmsetup", "create", "probe", "--table", fmt.Sprintf("0 8 flakey %s 0 0 60 %s", disk, failReads)).Run() != nil
	if !d.old {
		guest.Run(t, "dmsetup", "remove", "--retry", "probe")
	}
	return d
}

// hook returns a shell command that lets a part of the disk fail from now on; off and
// length are in bytes.
func (d *flaky) hook(t *testing.T, f fault, off, length int64) string {
	t.Helper()
	part := fmt.Sprintf("flakey %s %d 0 60 %s", d.disk, off/512, f)
	if f == failReads && d.old {
		part = "error" // dm-flakey would fail the flushes of the whole disk as well
	}
	part = fmt.Sprintf("%d %d %s\n", off/512, length/512, part)
	return d.load(t, d.linear(0, off)+part+d.linear(off+length, d.size))
}

func (d *flaky) linear(from, to int64) string {
	if from == to {
		return ""
	}
	return fmt.Sprintf("%d %d linear %s %d\n", from/512, (to-from)/512, d.disk, from/512)
}

// load returns a shell command that replaces the table. Filesystems are not frozen for
// it: one may be frozen already, and one that fails would never freeze.
func (d *flaky) load(t *testing.T, table string) string {
	t.Helper()
	path := filepath.Join(d.dir, fmt.Sprintf("table-%d", len(table)))
	guest.WriteFile(t, path, table)
	return fmt.Sprintf("dmsetup suspend --nolockfs %s && dmsetup reload %s %s && dmsetup resume %s", d.name, d.name, path, d.name)
}

// fails lets a part of the disk fail from now on.
func (d *flaky) fails(t *testing.T, f fault, off, length int64) {
	t.Helper()
	guest.Run(t, "sh", "-c", d.hook(t, f, off, length))
}

// heals ends every fault.
func (d *flaky) heals(t *testing.T) {
	t.Helper()
	guest.Run(t, "sh", "-c", d.load(t, d.linear(0, d.size)))
}

// place returns where a part of a file on an ext4 lies on its device: off, in the file
// and in the result, and length are in bytes.
func place(t *testing.T, device, file string, off, length int64) int64 {
	t.Helper()
	const block = 4096
	at := func(off int64) int64 {
		out := guest.Run(t, "debugfs", "-R", fmt.Sprintf("bmap %s %d", file, off/block), device)
		n, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
		if err != nil || n == 0 {
			t.Fatalf("byte %d of %s is nowhere: %q", off, file, out)
		}
		return n * block
	}
	start := at(off)
	if end := at(off + length - block); end != start+length-block {
		t.Fatalf("%s is in pieces", file)
	}
	return start
}

// fill writes pseudo-random bytes that depend on seed into a file, and syncs it.
func fill(t *testing.T, path string, seed byte, length int) {
	t.Helper()
	p := make([]byte, length)
	for i := range p {
		p[i] = byte(i>>8)*31 ^ byte(i)*7 ^ seed
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}
