package sysfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestStatisticsOfEveryKernelAreParsed(t *testing.T) {
	for text, want := range map[string]Stats{
		"1 2 3 4 5 6 7 8 9 10 11":                         {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11},
		"1 2 3 4 5 6 7 8 9 10 11 12 13 14 15":             {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
		"  1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n":   {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17},
		"1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19": {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17},
	} {
		if got, err := parseStats(text); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "1 2 3", "1 2 3 4 5 6 -7 8 9 10 11"} {
		if _, err := parseStats(text); err == nil {
			t.Errorf("%q was parsed", text)
		}
	}
}

func TestDeviceNumbersAreRead(t *testing.T) {
	if d, err := ParseDev(" 259:12\n"); err != nil || d != (Dev{259, 12}) || d.String() != "259:12" {
		t.Errorf("%v, %v", d, err)
	}
	for _, text := range []string{"", "8", "8:", ":1", "8:1:2", "8:-1", "4294967296:0"} {
		if d, err := ParseDev(text); err == nil {
			t.Errorf("%q is %v", text, d)
		}
	}
}

func TestDevicesThatAreGoneSaySo(t *testing.T) {
	if _, err := Node(Dev{4095, 1}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("node: %v", err)
	}
	if _, err := Stat(Dev{4095, 1}.Dir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat: %v", err)
	}
}

func TestADeviceOfThisMachineIsShown(t *testing.T) {
	disks, err := os.ReadDir("/sys/block")
	if err != nil || len(disks) == 0 {
		t.Fatalf("%d block devices, %v", len(disks), err)
	}
	text, err := Text(DiskDir(disks[0].Name()) + "/dev")
	if err != nil {
		t.Fatal(err)
	}
	d, err := ParseDev(text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Stat(d.Dir()); err != nil {
		t.Error(err)
	}
	if path, err := Node(d); err != nil || !isNode(path, d) {
		t.Errorf("node %q, %v", path, err)
	}
	if id, err := BootID(); err != nil || len(id) != 36 {
		t.Errorf("boot id %q, %v", id, err)
	}
}

func TestALinkIsFollowedOnce(t *testing.T) {
	dir := t.TempDir()
	for _, folder := range []string{"devices/vdb", "dev/block"} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	device := filepath.Join(dir, "devices/vdb")
	for name, to := range map[string]string{"relative": "../../devices/vdb", "absolute": device} {
		link := filepath.Join(dir, "dev/block", name)
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
		if got, err := Real(link); err != nil || got != device {
			t.Errorf("%s: %q, %v, want %q", name, got, err, device)
		}
	}
	if got, err := Real(device); err != nil || got != device {
		t.Errorf("no link: %q, %v", got, err)
	}
	if _, err := Real(filepath.Join(dir, "gone")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is gone: %v", err)
	}
}
