//go:build linux

package era_test

import (
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/test/vm/guest"
)

// Every command line that could harm something is refused, and leaves both devices
// as they were, to the byte.
func TestCreateRefuses(t *testing.T) {
	data, meta := guest.Disk(t, "data"), guest.Disk(t, "meta")
	zero(t, meta)
	other := guest.Disk(t, "other")
	partition(t, other)
	small := guest.Mapper(t, "small", "0 96 linear "+meta+" 0")
	smallData := guest.Mapper(t, "smalldata", "0 65536 linear "+data+" 0")
	devices := []string{data, meta, other}
	before := sums(t, devices)
	for _, c := range []struct {
		name, want string
		data, meta string
		more       []string
	}{
		{"one device", "one device", data, data, nil},
		{"a disk and its partition", "overlap", other, other + "1", nil},
		{"a partition and its disk", "overlap", other + "2", other, nil},
		{"a file", "not a block device", "/bin/tidemark", meta, nil},
		{"metadata that is too small", "need", smallData, small, []string{"--block-size", "4K"}},
		{"blocks that the kernel refuses", "multiple of 4096", other, meta, []string{"--block-size", "65s"}},
		{"a name that is taken", "taken", other, meta, []string{"--name", "small"}},
		{"data of another device", "in use", data, meta, nil},
		{"metadata of another device", "in use", other, meta, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := "refused"
			if len(c.more) > 1 && c.more[0] == "--name" {
				name, c.more = c.more[1], nil
			}
			refuses(t, c.want, append([]string{"era", "create", name, "--data", c.data, "--meta", c.meta}, c.more...)...)
		})
	}
	if after := sums(t, devices); after != before {
		t.Errorf("a device was written to:\n%s\n%s", before, after)
	}
}

// What the metadata device holds is not written over without --force.
func TestCreateRefusesContent(t *testing.T) {
	data, meta := guest.Disk(t, "data"), guest.Disk(t, "meta")
	create := []string{"era", "create", "refused", "--data", data, "--meta", meta, "--block-size", "64K"}
	for _, c := range []struct {
		name, want string
		fill       func()
	}{
		{"a filesystem", "ext", func() { guest.Run(t, "mkfs.ext4", "-q", "-F", meta) }},
		{"anything", "not zero", func() { zero(t, meta); fill(t, meta, 100, "x") }},
		{"metadata", "era open", func() {
			zero(t, meta)
			works(t, "era", "create", "first", "--data", data, "--meta", meta, "--block-size", "64K")
			works(t, "era", "close", "first")
		}},
		{"damaged metadata", "era device", func() { fill(t, meta, 300, "x") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.fill()
			untouched(t, []string{data, meta}, func() { refuses(t, c.want, create...) })
		})
	}
	works(t, append(create, "--force")...)
	works(t, "era", "close", "refused")
	clean(t, meta)
}

// Nobody's data or metadata is taken away from him.
func TestCreateRefusesWhatIsInUse(t *testing.T) {
	data, meta, other := guest.Disk(t, "data"), guest.Disk(t, "meta"), guest.Disk(t, "other")
	zero(t, meta)
	guest.Run(t, "wipefs", "-aq", other)
	mount := mounted(t, other)
	create := func(data, meta string) []string {
		return []string{"era", "create", "refused", "--data", data, "--meta", meta, "--block-size", "64K", "--force"}
	}
	guest.Run(t, "sync")
	untouched(t, []string{data, meta}, func() {
		refuses(t, mount, create(other, meta)...)
		refuses(t, mount, create(data, other)...)
	})
	guest.Run(t, "umount", mount)

	// Two loop devices over one file share its bytes.
	image := filepath.Join(t.TempDir(), "image")
	guest.Run(t, "truncate", "-s", "16M", image)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Link(image, link); err != nil {
		link = image // in another filesystem
	}
	a, b := guest.Loop(t, image), guest.Loop(t, link)
	refuses(t, "same part", create(a, b)...)

	// So do two devices over the same sectors, beside one another.
	low := guest.Mapper(t, "low", "0 32768 linear "+other+" 0")
	high := guest.Mapper(t, "high", "0 16384 linear "+other+" 32767")
	untouched(t, []string{other}, func() { refuses(t, "same part", create(low, high)...) })
	nested := guest.Mapper(t, "nested", "0 8192 linear "+low+" 8192")
	mid := guest.Mapper(t, "mid", "0 8192 linear "+other+" 12288")
	refuses(t, "same part", create(nested, mid)...)
	beside := guest.Mapper(t, "beside", "0 16384 linear "+other+" 32768")
	works(t, "era", "create", "fits", "--data", nested, "--meta", beside, "--block-size", "64K", "--force")
	works(t, "era", "close", "fits")
	read := guest.Loop(t, image, "--read-only")
	refuses(t, "read-only", create(read, meta)...)

	// A new device under the era device would write past it; and what is no era
	// device is not closed.
	d := createOn(t, "busy", data, 64*kib)
	refuses(t, "in use", create(data, other)...)
	refuses(t, "in use", create(other, meta)...)
	refuses(t, "in use", "era", "open", "second", "--data", other, "--meta", meta)
	refuses(t, "taken", "era", "open", "busy", "--data", other, "--meta", meta)
	guest.Mapper(t, "plain", "0 2048 linear "+other+" 0")
	if _, errs, code := tidemark(t, "era", "close", "plain"); code != 1 || !strings.Contains(errs, "linear") {
		t.Errorf("close of a linear device: exit code %d, %s", code, errs)
	}
	past := guest.Mapper(t, "past", "0 2048 linear "+data+" 0")
	if s := statusOf(t, "busy"); len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "past the era device") {
		t.Errorf("%s is a device over %s: %v", past, data, s.Warnings)
	}
	d.Close()
}

// Only metadata that is there, and of this data, is opened.
func TestOpenRefuses(t *testing.T) {
	data, meta, other := guest.Disk(t, "data"), guest.Disk(t, "meta"), guest.Disk(t, "other")
	zero(t, meta)
	open := func(args ...string) []string {
		return append([]string{"era", "open", "refused", "--data", data, "--meta", meta}, args...)
	}
	untouched(t, []string{data, meta}, func() {
		if _, errs, code := tidemark(t, open()...); code != 8 {
			t.Errorf("open without metadata: exit code %d, %s", code, errs)
		}
	})
	works(t, "era", "create", "first", "--data", data, "--meta", meta, "--block-size", "64K")
	works(t, "era", "close", "first")
	less := guest.Mapper(t, "less", "0 2048 linear "+other+" 0")
	untouched(t, []string{data, meta}, func() {
		refuses(t, "blocks are of", open("--block-size", "128K")...)
		refuses(t, "tells of", "era", "open", "refused", "--data", less, "--meta", meta)
		refuses(t, "one device", "era", "open", "refused", "--data", meta, "--meta", meta)
	})
}

// refuses runs a command that must end with exit code 6 and say a word.
func refuses(t testing.TB, want string, args ...string) {
	t.Helper()
	_, errs, code := tidemark(t, args...)
	if code != 6 || !strings.Contains(errs, want) {
		t.Errorf("tidemark %s: exit code %d, want 6 and %q\n%s", strings.Join(args, " "), code, want, errs)
	}
}

// untouched fails when do changes a byte of the devices.
func untouched(t testing.TB, devices []string, do func()) {
	t.Helper()
	before := sums(t, devices)
	do()
	if after := sums(t, devices); after != before {
		t.Errorf("a device was written to:\n%s\n%s", before, after)
	}
}

func sums(t testing.TB, devices []string) string {
	t.Helper()
	var all strings.Builder
	for _, path := range devices {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
		if _, err := io.Copy(h, f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		fmt.Fprintf(&all, "%s %x\n", path, h.Sum(nil))
	}
	return all.String()
}

// zero zeroes what matters of a metadata device.
func zero(t testing.TB, path string) {
	t.Helper()
	guest.Run(t, "wipefs", "-aqf", path)
	dev := guest.OpenDirect(t, path)
	if _, err := dev.WriteAt(make([]byte, mib), 0); err != nil {
		t.Fatal(err)
	}
	dev.Close()
}

func fill(t testing.TB, path string, off int64, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// partition makes two partitions on a disk, and takes them away at the end.
func partition(t testing.TB, disk string) {
	t.Helper()
	cmd := exec.Command("sfdisk", "-q", disk)
	cmd.Stdin = strings.NewReader("label: gpt\nsize=16M\nsize=16M\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		guest.Run(t, "wipefs", "-aqf", disk)
		guest.Run(t, "blockdev", "--rereadpt", disk)
	})
}

// number is the number of a block device.
func number(t testing.TB, path string) string {
	t.Helper()
	return guest.Run(t, "lsblk", "-dno", "MAJ:MIN", path)
}

func output(program string, args ...string) (string, error) {
	out, err := exec.Command(program, args...).CombinedOutput()
	return string(out), err
}
