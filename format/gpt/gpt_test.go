package gpt_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/format/gpt"
	"tidemark/linux/mounts/mountstest"
)

const (
	small = 64 << 20 // bytes of the disk that the table is made for
	large = 96 << 20
)

// disk makes an image with a table of sfdisk's script and returns its path.
func disk(t testing.TB, sector int, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, small)); err != nil {
		t.Fatal(err)
	}
	sfdisk(t, path, sector, script, "--quiet")
	return path
}

// sfdisk runs that tool on a loop device over the image, which has sectors of that size.
func sfdisk(t testing.TB, path string, sector int, script string, args ...string) string {
	t.Helper()
	dev := mountstest.Run(t, "losetup", "--find", "--show", "--sector-size", fmt.Sprint(sector), path)
	defer mountstest.Run(t, "losetup", "--detach", dev)
	cmd := exec.Command("sfdisk", append(args, dev)...)
	cmd.Stdin = strings.NewReader(script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("sfdisk (scripts/setup installs it): %v\n%s", err, out)
	}
	return strings.ReplaceAll(string(out), dev, "disk")
}

// open opens the image, of size bytes from now on.
func open(t testing.TB, path string, size int64) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

const script = `label: gpt
size=8MiB, type=uefi, name="EFI"
size=1MiB, type=21686148-6449-6E6F-744E-656564454649
size=20MiB, type=linux, name="Räume ☂", attrs="RequiredPartition GUID:63"
`

func TestATableThatWasMovedIsThatOfTheLargerDisk(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		path := disk(t, sector, script)
		parts := sfdisk(t, path, sector, "", "--dump")
		f := open(t, path, large)
		before := make([]byte, large)
		if _, err := f.ReadAt(before, 0); err != nil {
			t.Fatal(err)
		}
		table, err := gpt.Read(f)
		if err != nil {
			t.Fatal(err)
		}
		if table.SectorSize != sector || table.Size() != small || len(table.Partitions) != 3 || table.Partitions[0].Type != gpt.TypeEFI || table.Partitions[1].Type != gpt.TypeBIOSBoot || table.Partitions[2].Size != 20<<20 {
			t.Errorf("sector %d: %+v", sector, table)
		}
		if err := table.Move(f, large); err != nil {
			t.Fatal(err)
		}
		if out := sfdisk(t, path, sector, "", "--verify"); !strings.Contains(out, "No errors detected") {
			t.Errorf("sector %d: sfdisk --verify: %s", sector, out)
		}
		now := sfdisk(t, path, sector, "", "--dump")
		if apart(now) != apart(parts) {
			t.Errorf("sector %d: it was\n%s\nand is\n%s", sector, parts, now)
		}
		after := make([]byte, large)
		if _, err := f.ReadAt(after, 0); err != nil {
			t.Fatal(err)
		}
		// The MBR, the first header; and what was the unused end of the disk.
		s := sector
		entries := 128 * 128
		if !bytes.Equal(before[2*s:large-s-entries], after[2*s:large-s-entries]) || !bytes.Equal(before[:446], after[:446]) {
			t.Errorf("sector %d: other bytes than the table's were changed", sector)
		}
		again, err := gpt.Read(f)
		if err != nil || again.Size() != large {
			t.Errorf("sector %d: %+v, %v", sector, again, err)
		}
	}
}

// apart is a dump without the line that says how far partitions may reach.
func apart(dump string) string {
	var lines []string
	for line := range strings.SplitSeq(dump, "\n") {
		if !strings.HasPrefix(line, "last-lba") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

// The library would make some tables tidier than they are.
func TestAnUnusualTableIsLeftAlone(t *testing.T) {
	path := disk(t, 512, script)
	f := open(t, path, large)
	b := make([]byte, 34*512)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	b[1024+56+70] = 'x' // behind the end of a name
	header := b[512:604]
	binary.LittleEndian.PutUint32(header[88:], crc32.ChecksumIEEE(b[1024:]))
	clear(header[16:20])
	binary.LittleEndian.PutUint32(header[16:], crc32.ChecksumIEEE(header))
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	table, err := gpt.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Move(f, large); !errors.Is(err, gpt.ErrUnusual) {
		t.Errorf("move: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("it was written to (%v)", err)
	}
}

func TestATableThatIsDamagedIsNone(t *testing.T) {
	for _, off := range []int64{512, 512 + 16, 1024} { // signature, checksum, an entry
		f := open(t, disk(t, 512, script), large)
		if _, err := f.WriteAt([]byte{'?'}, off); err != nil {
			t.Fatal(err)
		}
		if _, err := gpt.Read(f); !errors.Is(err, gpt.ErrNone) {
			t.Errorf("%d: %v", off, err)
		}
	}
}

// bytesDisk is a disk in memory.
type bytesDisk []byte

func (d bytesDisk) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(d).ReadAt(p, off) }

func (d bytesDisk) WriteAt(p []byte, off int64) (int, error) { return copy(d[off:], p), nil }

func (bytesDisk) Sync() error { return nil }

// Whatever a table says, one that is moved has the same partitions, and one that is refused
// is not touched.
func FuzzMove(f *testing.F) {
	b, err := os.ReadFile(disk(f, 512, script))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[512:604], b[1024:1024+512])
	f.Fuzz(func(t *testing.T, header, entries []byte) {
		const size = 256 << 10
		d := make(bytesDisk, size)
		if len(header) != 92 || len(entries) > size/2 {
			return
		}
		copy(d[1024:], entries)
		copy(d[512:], header)
		header = d[512:604]
		at, count := binary.LittleEndian.Uint64(header[72:]), int64(binary.LittleEndian.Uint32(header[80:]))
		if end := int64(at)*512 + count*128; at < size/512 && end <= size {
			binary.LittleEndian.PutUint32(header[88:], crc32.ChecksumIEEE(d[at*512:end]))
		}
		clear(header[16:20])
		binary.LittleEndian.PutUint32(header[16:], crc32.ChecksumIEEE(header))
		table, err := gpt.Read(d)
		if err != nil {
			return
		}
		parts, before := fmt.Sprint(table.Partitions), bytes.Clone(d)
		if err := table.Move(d, size); err != nil {
			if !bytes.Equal(before, d) {
				t.Fatal("refused, and written to")
			}
			return
		}
		again, err := gpt.Read(d)
		if err != nil || fmt.Sprint(again.Partitions) != parts {
			t.Fatalf("it was %s and is %+v, %v", parts, again, err)
		}
	})
}
