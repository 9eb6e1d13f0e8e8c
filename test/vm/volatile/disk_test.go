package volatile

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

const testSize = 1 << 20

func testDisk(t *testing.T) *Disk {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, bytes.Repeat([]byte{'0'}, testSize), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := Open(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func content(t *testing.T, d *Disk) []byte {
	t.Helper()
	p, err := os.ReadFile(d.file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustWrite(t *testing.T, d *Disk, b byte, off, n int64, fua bool) {
	t.Helper()
	if err := d.write(bytes.Repeat([]byte{b}, int(n)), off, fua); err != nil {
		t.Fatal(err)
	}
}

// What was flushed or written with FUA survives every power cut.
func TestPromisedDataSurvives(t *testing.T) {
	for seed := range uint64(20) {
		d := testDisk(t)
		mustWrite(t, d, '1', 0, 64<<10, false)
		if err := d.flush(); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, d, '2', 0, 16<<10, false)
		mustWrite(t, d, '3', 1<<10, 6<<10, true)
		if _, err := d.PowerCut(seed); err != nil {
			t.Fatal(err)
		}
		p := content(t, d)
		for i, b := range p[:64<<10] {
			fua := i >= 1<<10 && i < 7<<10
			old := b == '1' || i < 16<<10 && b == '2'
			if fua && b != '3' || !fua && !old {
				t.Fatalf("seed %d: byte %d is %q", seed, i, b)
			}
		}
	}
}

// Unflushed data is partly lost, in whole sectors, and the rest of the disk is untouched.
func TestUnflushedDataIsLostInSectors(t *testing.T) {
	d := testDisk(t)
	mustWrite(t, d, '1', 8<<10, 512<<10, false)
	lost, err := d.PowerCut(7)
	if err != nil {
		t.Fatal(err)
	}
	p := content(t, d)
	zeroes := int64(bytes.Count(p[8<<10:520<<10], []byte{'0'}))
	if zeroes != lost || lost == 0 || lost == 512<<10 {
		t.Fatalf("lost %d bytes, the file says %d", lost, zeroes)
	}
	for at := 0; at < len(p); at += 512 {
		if !bytes.Equal(p[at:at+512], bytes.Repeat(p[at:at+1], 512)) {
			t.Fatalf("sector at byte %d is torn inside", at)
		}
	}
	if bytes.Contains(p[:8<<10], []byte{'1'}) || bytes.Contains(p[520<<10:], []byte{'1'}) {
		t.Fatal("bytes outside the write changed")
	}
}

// The same seed loses the same sectors.
func TestCutIsRepeatable(t *testing.T) {
	var first []byte
	for range 3 {
		d := testDisk(t)
		mustWrite(t, d, '1', 512, testSize-1024, false)
		if _, err := d.PowerCut(42); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = content(t, d)
		}
		if !bytes.Equal(first, content(t, d)) {
			t.Fatal("the same seed gave two disks")
		}
	}
}

// The chosen write never happens, nor does anything after it.
func TestCutAtWrite(t *testing.T) {
	d := testDisk(t)
	cuts := 0
	d.CutAt(2, func() { cuts++ })
	mustWrite(t, d, '1', 0, 4096, true)
	if err := d.write([]byte{'2'}, 0, true); !errors.Is(err, ErrPowerCut) {
		t.Fatalf("write 2: %v", err)
	}
	if err := d.flush(); !errors.Is(err, ErrPowerCut) {
		t.Fatalf("flush: %v", err)
	}
	if cuts != 1 || content(t, d)[0] != '1' {
		t.Fatalf("%d cuts, byte 0 is %q", cuts, content(t, d)[0])
	}
}
