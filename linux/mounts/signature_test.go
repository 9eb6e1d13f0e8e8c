package mounts_test

import (
	"bytes"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"tidemark/linux/mounts"
	"tidemark/linux/mounts/mountstest"
)

func probe(t *testing.T, path string) []string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	found, err := mounts.Probe(f, size)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range found {
		names = append(names, s.String())
	}
	return names
}

func TestProbeKnowsWhatTheRealToolsMake(t *testing.T) {
	for _, c := range []struct {
		want string
		tool []string
	}{
		{"ext4 filesystem", []string{"mkfs.ext4", "-q", "-F"}},
		{"ext4 filesystem", []string{"mkfs.ext4", "-q", "-F", "-O", "^has_journal"}},
		{"ext3 filesystem", []string{"mkfs.ext3", "-q", "-F"}},
		{"ext2 filesystem", []string{"mkfs.ext2", "-q", "-F", "-b", "1024"}},
		{"xfs filesystem", []string{"mkfs.xfs", "-q", "-f"}},
		{"btrfs filesystem", []string{"mkfs.btrfs", "-q"}},
		{"swap area", []string{"mkswap"}},
		{"swap area", []string{"mkswap", "--pagesize", "65536"}},
	} {
		image := mountstest.Image(t, large)
		mountstest.Run(t, c.tool[0], append(c.tool[1:], image)...)
		if got := probe(t, image); !slices.Equal(got, []string{c.want}) {
			t.Errorf("%v: found %q, want %q", c.tool, got, c.want)
		}
		mountstest.Run(t, "wipefs", "--all", "--quiet", image)
		if got := probe(t, image); len(got) != 0 {
			t.Errorf("%v, wiped: found %q", c.tool, got)
		}
	}
	log := mountstest.Image(t, small)
	mountstest.Run(t, "mkfs.xfs", "-q", "-f", "-l", "logdev="+log+",size=64m", mountstest.Image(t, large))
	if got := probe(t, log); !slices.Equal(got, []string{"xfs_external_log volume member"}) {
		t.Errorf("log of an XFS: found %q", got)
	}
	for _, c := range []struct{ label, want string }{{"gpt", "gpt"}, {"dos", "dos"}, {"sgi", "sgi"}, {"sun", "sun"}} {
		image := mountstest.Image(t, small)
		cmd := exec.Command("sfdisk", "--quiet", image)
		cmd.Stdin = strings.NewReader("label: " + c.label + "\nsize=1MiB\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("sfdisk: %v\n%s", err, out)
		}
		if got := probe(t, image); !slices.Contains(got, c.want+" partition table") {
			t.Errorf("%s label: found %q", c.label, got)
		}
	}
}

func TestProbeFindsNothingOnEmptyAndTinyDisks(t *testing.T) {
	for _, size := range []int{0, 1, 511, 512, 4096, 1 << 20} {
		found, err := mounts.Probe(bytes.NewReader(make([]byte, size)), int64(size))
		if err != nil || len(found) != 0 {
			t.Errorf("%d zero bytes: %v, %v", size, found, err)
		}
	}
}

func TestProbeReportsAReadError(t *testing.T) {
	if _, err := mounts.Probe(bytes.NewReader(nil), 1<<20); err == nil {
		t.Error("a device that cannot be read was called empty")
	}
}

func TestBootSectorWithoutTableIsNoTable(t *testing.T) {
	disk := make([]byte, 4096)
	for i := range 510 {
		disk[i] = 0x41
	}
	disk[510], disk[511] = 0x55, 0xaa
	if found, err := mounts.Probe(bytes.NewReader(disk), 4096); err != nil || len(found) != 0 {
		t.Errorf("%v, %v", found, err)
	}
}

func FuzzProbe(f *testing.F) {
	f.Add(make([]byte, 512), uint32(0))
	f.Add([]byte("LUKS\xba\xbe"), uint32(0))
	f.Add([]byte("SWAPSPACE2"), uint32(4086))
	f.Add([]byte("\xfc\x4e\x2b\xa9"), uint32(1<<20-8<<10))
	f.Fuzz(func(t *testing.T, data []byte, off uint32) {
		disk := make([]byte, 1<<20)
		copy(disk[off%(1<<20):], data)
		found, err := mounts.Probe(bytes.NewReader(disk), int64(len(disk)))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range found {
			if s.Off < 0 || s.Off >= int64(len(disk)) || s.Name == "" || s.Kind == "" {
				t.Errorf("%+v is not on the disk", s)
			}
		}
		if bytes.Equal(data, make([]byte, len(data))) && len(found) > 0 {
			t.Errorf("zeros have %v", found)
		}
	})
}
