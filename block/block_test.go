package block_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"tidemark/block"
	"tidemark/extent"
)

func image(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// loop attaches image to a loop device for the length of the test.
func loop(t *testing.T, image string, args ...string) string {
	t.Helper()
	out, err := exec.Command("losetup", append([]string{"--find", "--show", image}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup (package mount, needs root): %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

func TestIsZeroSeesEveryByte(t *testing.T) {
	for _, n := range []int{0, 1, 511, 4096, 4097, 10000} {
		p := make([]byte, n)
		if !block.IsZero(p) {
			t.Fatalf("%d zero bytes do not count as zero", n)
		}
		for i := range p {
			p[i] = 1
			if block.IsZero(p) {
				t.Fatalf("byte %d of %d is not seen", i, n)
			}
			p[i] = 0
		}
	}
}

func TestDirectReadsAndWritesOfALoopDevice(t *testing.T) {
	dev := loop(t, image(t, 1<<20+512))
	d, err := block.Open(dev, block.Options{Write: true, Direct: true, Exclusive: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.Size() != 1<<20+512 || !d.IsDevice() {
		t.Fatalf("size %d, device %v", d.Size(), d.IsDevice())
	}
	buf := block.AlignedBuffer(512)
	copy(buf, "the last sector")
	if _, err := d.WriteAt(buf, 1<<20); err != nil {
		t.Fatal(err)
	}
	got := block.AlignedBuffer(512)
	if _, err := d.ReadAt(got, 1<<20); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(buf, got) {
		t.Fatal("read back something else")
	}
	if _, err := block.Open(dev, block.Options{Write: true, Exclusive: true}); err == nil {
		t.Fatal("a claimed device was opened exclusively again")
	}
}

// Logical sectors of more than 4096 bytes came with Linux 6.15.
func TestDirectReadsOfLargeSectorsMayBeginAnywhere(t *testing.T) {
	path := image(t, 1<<20)
	data := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{2}).Read(data)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, sector := range []int{512, 4096, 16384} {
		dev := loop(t, path, "--sector-size", strconv.Itoa(sector))
		d, err := block.Open(dev, block.Options{Direct: true})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if d.SectorSize() != sector {
			t.Errorf("sectors of %d bytes, want %d", d.SectorSize(), sector)
		}
		if _, err := d.Counters(); err != nil {
			t.Error(err)
		}
		for _, e := range []extent.Extent{{Len: 4096}, {Off: 4096, Len: 4096}, {Off: 12 << 10, Len: 40 << 10}, {Off: 1<<20 - 512, Len: 512}, {Off: 1000, Len: 3}} {
			got := block.AlignedBuffer(int(e.Len))
			if n, err := d.ReadAt(got, e.Off); err != nil || n != len(got) || !bytes.Equal(got, data[e.Off:e.End()]) {
				t.Errorf("sectors of %d: %v: %d bytes, %v", sector, e, n, err)
			}
		}
		if n, err := d.ReadAt(block.AlignedBuffer(8192), 1<<20-100); n != 100 || err != io.EOF {
			t.Errorf("sectors of %d, over the end: %d bytes, %v", sector, n, err)
		}
	}
}

func TestTheSmallestDiskHasCounters(t *testing.T) {
	for _, direct := range []bool{true, false} {
		d, err := block.Open(loop(t, image(t, 512)), block.Options{Direct: direct})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if _, err := d.Counters(); err != nil {
			t.Errorf("direct %v: %v", direct, err)
		}
	}
}

func TestADeviceIsIdentifiedByWhatIsOpen(t *testing.T) {
	one, two := loop(t, image(t, 1<<20)), loop(t, image(t, 2<<20))
	link := filepath.Join(t.TempDir(), "disk")
	if err := os.Symlink(one, link); err != nil {
		t.Fatal(err)
	}
	d, err := block.Open(link, block.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := errors.Join(os.Remove(link), os.Symlink(two, link)); err != nil {
		t.Fatal(err)
	}
	want, err := block.Identify(one)
	if err != nil {
		t.Fatal(err)
	}
	id := d.Identity()
	if want.Path = link; id != want {
		t.Errorf("open is %+v, want %+v", id, want)
	}
	if by, err := block.IdentifyDev(id.Dev()); err != nil || by.DiskSeq != id.DiskSeq || by.Size != id.Size {
		t.Errorf("by number %+v, %v", by, err)
	}
	if now, err := block.Identify(link); err != nil || now.Dev() == id.Dev() {
		t.Errorf("the path leads to %+v, %v", now, err)
	}
}

func TestZeroReadsAsZeros(t *testing.T) {
	for name, path := range map[string]string{"file": image(t, 1<<20), "device": loop(t, image(t, 1<<20))} {
		t.Run(name, func(t *testing.T) {
			d, err := block.Open(path, block.Options{Write: true})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			data := make([]byte, 1<<20)
			rand.NewChaCha8([32]byte{1}).Read(data)
			if _, err := d.WriteAt(data, 0); err != nil {
				t.Fatal(err)
			}
			hole := extent.Extent{Off: 8192, Len: 65536}
			if err := d.Zero(hole); err != nil {
				t.Fatal(err)
			}
			clear(data[hole.Off:hole.End()])
			got := make([]byte, len(data))
			if _, err := d.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, data) {
				t.Fatal("the device differs from the model after Zero")
			}
		})
	}
}

func TestDataSkipsHoles(t *testing.T) {
	d, err := block.Open(image(t, 1<<20), block.Options{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.WriteAt(bytes.Repeat([]byte{1}, 4096), 512<<10); err != nil {
		t.Fatal(err)
	}
	got, err := d.Data(extent.Extent{Len: d.Size()})
	if err != nil {
		t.Fatal(err)
	}
	if !got.Covers(extent.Extent{Off: 512 << 10, Len: 4096}) || got.Bytes() > 256<<10 {
		t.Fatalf("data at %v", got.Extents())
	}
}

func TestIdentityOfADiskAndItsPartition(t *testing.T) {
	path := image(t, 64<<20)
	cmd := exec.Command("sfdisk", "--quiet", path)
	cmd.Stdin = strings.NewReader("start=4096,size=8192\nstart=20480,size=16384\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk (package fdisk): %v: %s", err, out)
	}
	dev := loop(t, path)
	// partx adds the partitions where the kernel cannot read this table itself.
	if out, err := exec.Command("partx", "--update", dev).CombinedOutput(); err != nil {
		t.Fatalf("partx (package util-linux): %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("partx", "--delete", dev).Run() })
	disk, err := block.Identify(dev)
	if err != nil {
		t.Fatal(err)
	}
	if disk.IsPartition() || disk.BioBased || disk.Size != 64<<20 || disk.DiskSeq == 0 {
		t.Fatalf("disk: %+v", disk)
	}
	part, err := block.Identify(dev + "p2")
	if err != nil {
		t.Fatal(err)
	}
	if !part.IsPartition() || part.Start != 20480*512 || part.Size != 16384*512 || part.Disk != disk.Disk ||
		part.DiskMinor != disk.Minor || part.DiskSize != disk.Size || part.DiskSeq != disk.DiskSeq {
		t.Fatalf("partition: %+v of %+v", part, disk)
	}
}

func TestOtherFilesAreRefused(t *testing.T) {
	if _, err := block.Open("/dev/null", block.Options{}); !errors.Is(err, block.ErrUnsupportedFile) {
		t.Errorf("character device: %v", err)
	}
	if _, err := block.Open(t.TempDir(), block.Options{}); !errors.Is(err, block.ErrUnsupportedFile) {
		t.Errorf("directory: %v", err)
	}
	if _, err := block.Identify(image(t, 0)); !errors.Is(err, block.ErrNotBlockDevice) {
		t.Errorf("file: %v", err)
	}
}

func TestALargeBufferIsZerosOfThatLength(t *testing.T) {
	for _, n := range []int{1, 2 << 20, 5<<20 + 3} {
		b := block.LargeBuffer(n)
		if len(b) != n || cap(b) != n || !block.IsZero(b) {
			t.Errorf("%d bytes, capacity %d, want %d zeros", len(b), cap(b), n)
		}
		b[0], b[n-1] = 1, 1
	}
}
