package mounts

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidemark/linux/sysfs"
)

func TestEveryMagicIsFoundWhereTheTableSaysIt(t *testing.T) {
	const size = 4 << 20
	for _, m := range magics {
		if m.check != nil {
			continue // made by the real tools in the other tests, or below
		}
		disk := make([]byte, size)
		copy(disk[m.at(size):], m.bytes)
		found, err := Probe(bytes.NewReader(disk), size)
		if err != nil || !slices.ContainsFunc(found, func(s Signature) bool { return s.Name == m.name }) {
			t.Errorf("%s at %d: found %v, %v", m.name, m.off, found, err)
		}
	}
}

func TestRAIDSuperblocksAtTheEndAreFound(t *testing.T) {
	for _, size := range []int64{1 << 20, 1<<20 + 512*7, 1 << 21} {
		for _, off := range []int64{(size - 8192) / 4096 * 4096, size/65536*65536 - 65536} {
			disk := make([]byte, size)
			copy(disk[off:], mdMagic)
			found, err := Probe(bytes.NewReader(disk), size)
			if err != nil || len(found) != 1 || found[0].Kind != KindMember {
				t.Errorf("size %d, superblock at %d: %v, %v", size, off, found, err)
			}
		}
	}
}

func TestSwapsAreParsed(t *testing.T) {
	const text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n" +
		"/dev/sda2                               partition\t1048572\t\t0\t\t-2\n" +
		`/srv/a\040b                             file` + "\t\t8188\t\t0\t\t0\n"
	got, err := parseSwaps(strings.NewReader(text))
	want := []Swap{{"/dev/sda2", false}, {"/srv/a b", true}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

func FuzzParseSwaps(f *testing.F) {
	f.Add("Filename Type\n/dev/sda2 partition 1 0 -2\n")
	f.Add("Filename Type\n/a\\040b\\0 file 1 0 -2\n")
	f.Fuzz(func(t *testing.T, text string) {
		swaps, err := parseSwaps(strings.NewReader(text))
		if err == nil && len(swaps) > strings.Count(text, "\n")+1 {
			t.Errorf("%d areas in %d lines", len(swaps), strings.Count(text, "\n"))
		}
	})
}

func FuzzMountinfo(f *testing.F) {
	f.Add("27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n")
	f.Add("30 27 0:30 /sub /srv\\040x ro shared:1 - btrfs /dev/sda1 rw,subvol=/sub\n")
	f.Add("36 35 98:0 /m /n rw - xfs /dev/sdb ro,logdev=/dev/sdc,rtdev=/dev/sdd\n")
	f.Fuzz(func(t *testing.T, text string) {
		table := &Table{sys: system{proc: "/nowhere/proc", sys: "/nowhere/sys"}}
		if table.addMounts(strings.NewReader(text), 0) != nil {
			return
		}
		for _, fs := range table.filesystems {
			fs.Members = table.membersOf(fs)
			if len(fs.Mounts) == 0 || fs.String() == "" {
				t.Errorf("%+v has no mount", fs)
			}
		}
		all := slices.Clone(table.filesystems)
		ordered, err := table.freezeOrder(all)
		if err != nil || len(ordered) != len(table.filesystems) {
			t.Errorf("%d of %d filesystems ordered, %v", len(ordered), len(table.filesystems), err)
		}
	})
}

// A fakeSys is a sysfs and a /proc with devices that this machine has not.
type fakeSys struct {
	t    *testing.T
	root string
}

func (f fakeSys) write(path, text string) {
	f.t.Helper()
	path = filepath.Join(f.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f fakeSys) link(target, path string) {
	f.t.Helper()
	path = filepath.Join(f.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(f.root, target), path); err != nil {
		f.t.Fatal(err)
	}
}

// disk adds a whole disk; part adds a slice of one, in sectors.
func (f fakeSys) disk(name, number string) {
	dir := "sys/devices/" + name
	f.write(dir+"/dev", number+"\n")
	f.link(dir, "sys/dev/block/"+number)
	f.link(dir, "sys/class/block/"+name)
	f.link(dir, "sys/block/"+name)
}

func (f fakeSys) part(disk, name, number, start, size string) {
	dir := "sys/devices/" + disk + "/" + name
	f.write(dir+"/dev", number+"\n")
	f.write(dir+"/partition", "1\n")
	f.write(dir+"/start", start+"\n")
	f.write(dir+"/size", size+"\n")
	f.link(dir, "sys/dev/block/"+number)
	f.link(dir, "sys/class/block/"+name)
}

// over makes upper a holder of lower.
func (f fakeSys) over(upper, lower string) {
	f.link("sys/class/block/"+upper, "sys/class/block/"+lower+"/holders/"+upper)
	f.link("sys/class/block/"+lower, "sys/class/block/"+upper+"/slaves/"+lower)
}

func newFakeSys(t *testing.T) fakeSys {
	f := fakeSys{t, t.TempDir()}
	f.disk("sda", "8:0")
	f.part("sda", "sda1", "8:1", "2048", "1000")
	f.part("sda", "sda2", "8:2", "4096", "1000")
	f.part("sda", "sda3", "8:3", "4500", "100") // laid over sda2
	f.disk("sdb", "8:16")
	f.disk("md0", "9:0")
	f.disk("dm-0", "252:0")
	f.write("sys/block/dm-0/dm/name", "vg-root\n")
	f.part("md0", "md0p1", "259:0", "8", "100")
	f.over("md0", "sda2")
	f.over("md0", "sdb")
	f.over("dm-0", "md0p1")
	f.write("proc/swaps", "Filename Type Size Used Priority\n/dev/dm-0 partition 1 0 -2\n")
	return f
}

func (f fakeSys) read(mountinfo string) *Table {
	f.t.Helper()
	f.write("proc/self/mountinfo", mountinfo)
	table, err := system{proc: f.root + "/proc", sys: f.root + "/sys"}.read()
	if err != nil {
		f.t.Fatal(err)
	}
	return table
}

func (f fakeSys) wantOn(table *Table, number sysfs.Dev, want ...string) {
	f.t.Helper()
	on, err := table.On(number)
	if err != nil {
		f.t.Fatal(err)
	}
	var got []string
	for _, fs := range on {
		got = append(got, fs.Mounts[0].Point)
	}
	if !slices.Equal(got, want) {
		f.t.Errorf("on %s: %q, want %q", number, got, want)
	}
}

func TestHoldersAreFollowedThroughRAIDPartitionsAndMaps(t *testing.T) {
	f := newFakeSys(t)
	table := f.read("1 0 8:1 / /boot rw - ext4 /dev/sda1 rw\n" +
		"2 0 252:0 / / rw - xfs /dev/mapper/vg-root rw,logdev=/dev/sda3\n" +
		"3 0 0:22 / /sys rw - sysfs sysfs rw\n")
	f.wantOn(table, sysfs.Dev{Major: 8, Minor: 0}, "/", "/boot")
	f.wantOn(table, sysfs.Dev{Major: 8, Minor: 1}, "/boot")
	f.wantOn(table, sysfs.Dev{Major: 8, Minor: 2}, "/")
	f.wantOn(table, sysfs.Dev{Major: 8, Minor: 3}, "/") // as log, and through the overlap
	f.wantOn(table, sysfs.Dev{Major: 8, Minor: 16}, "/")
	f.wantOn(table, sysfs.Dev{Major: 9, Minor: 0}, "/")
	f.wantOn(table, sysfs.Dev{Major: 252, Minor: 0}, "/")
	swaps, err := table.SwapsOn(sysfs.Dev{Major: 8, Minor: 16})
	if err != nil || len(swaps) != 1 {
		t.Errorf("swap over the RAID: %v, %v", swaps, err)
	}
}

func TestOverlappingUsersCount(t *testing.T) {
	f := newFakeSys(t)
	f.wantOn(f.read("1 0 8:3 / /over rw - ext4 /dev/sda3 rw\n"), sysfs.Dev{Major: 8, Minor: 2}, "/over")
	f.wantOn(f.read("1 0 8:3 / /over rw - ext4 /dev/sda3 rw\n"), sysfs.Dev{Major: 8, Minor: 1})
	f.wantOn(f.read("1 0 8:0 / /whole rw - vfat /dev/sda rw\n"), sysfs.Dev{Major: 8, Minor: 1}, "/whole")
}

func TestBtrfsWithoutANodeInThisRootIsTakenForAnyUnclaimed(t *testing.T) {
	f := newFakeSys(t)
	f.link("sys/devices/sdb", "sys/fs/btrfs/one/devices/sdb")
	f.link("sys/devices/sda/sda1", "sys/fs/btrfs/two/devices/sda1")
	table := f.read("1 0 0:40 / /b rw - btrfs /dev/sda1 rw\n2 0 0:41 / /c rw - btrfs /dev/gone rw\n")
	f.wantOn(table, sysfs.Dev{Major: 8, Minor: 1}, "/b")
	f.wantOn(table, sysfs.Dev{Major: 8, Minor: 16}, "/c")
}

func TestVanishedDeviceIsAnError(t *testing.T) {
	f := newFakeSys(t)
	if on, err := f.read("").On(sysfs.Dev{Major: 8, Minor: 99}); err == nil {
		t.Errorf("a device that is not there has %v on it", on)
	}
}

// sda2 and sdb make md0; the volumes of one group lie on md0p1 and sdc.
func TestWhatLiesOnOtherDevicesTooIsNamedWithThem(t *testing.T) {
	f := newFakeSys(t)
	const group = "0123456789abcdef0123456789abcdef"
	f.disk("sdc", "8:32")
	f.disk("sdd", "8:48")
	f.disk("dm-1", "252:1")
	f.disk("dm-2", "252:2")
	f.write("sys/block/dm-0/dm/uuid", "LVM-"+group+"root\n")
	f.write("sys/block/dm-1/dm/uuid", "LVM-"+group+"srv\n")
	f.write("sys/block/dm-1/dm/name", "vg-srv\n")
	f.over("dm-1", "sdc")
	f.write("sys/block/dm-2/dm/uuid", "TIDEMARK-ERA-1\n")
	f.over("dm-2", "sda1")
	f.over("dm-2", "sdd")
	f.disk("bcache0", "250:0")
	f.over("bcache0", "sdd")
	f.over("bcache0", "sda3")
	table := f.read("2 0 252:0 / / rw - xfs /dev/mapper/vg-root rw\n")
	const md = "/dev/md0 with xfs on / (/dev/mapper/vg-root)"
	for _, c := range []struct {
		given []string
		want  string
	}{
		{[]string{"8:2"}, md + ": 8:16"},
		{[]string{"8:16"}, md + ": 8:2"},
		{[]string{"8:2", "8:16"}, "volume group " + group + ": 8:32"},
		{[]string{"8:0", "8:16"}, "/dev/bcache0: 8:48; volume group " + group + ": 8:32"},
		{[]string{"9:0"}, "volume group " + group + ": 8:32"},
		{[]string{"8:32"}, "volume group " + group + ": 259:0"},
		{[]string{"8:32", "9:0"}, ""},
		{[]string{"252:0"}, ""},
		{[]string{"8:1"}, ""}, // an era device is its data
		{[]string{"252:1"}, ""},
	} {
		var devs []sysfs.Dev
		for _, text := range c.given {
			d, err := sysfs.ParseDev(text)
			if err != nil {
				t.Fatal(err)
			}
			devs = append(devs, d)
		}
		found, err := table.Spread(devs...)
		var got []string
		for _, s := range found {
			for _, d := range s.Missing {
				got = append(got, s.Name+": "+d.String())
			}
		}
		if err != nil || strings.Join(got, "; ") != c.want {
			t.Errorf("%v: %q, %v, want %q", c.given, got, err, c.want)
		}
	}
	top, err := table.Topmost([]sysfs.Dev{{Major: 8, Minor: 2}, {Major: 9, Minor: 0}, {Major: 8, Minor: 32}})
	if err != nil || !slices.Equal(top, []sysfs.Dev{{Major: 9, Minor: 0}, {Major: 8, Minor: 32}}) {
		t.Errorf("on top: %v, %v", top, err)
	}
}
