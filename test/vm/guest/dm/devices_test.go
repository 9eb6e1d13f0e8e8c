//go:build linux

package dm_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"tidemark/linux/dm"
	"tidemark/test/vm/guest"
)

// stack is a device of each kind, from the ground up: name and table. %s is the disk.
var stack = []struct{ name, table string }{
	{"low", "0 20480 linear %s 0"},
	{"cow", "0 4096 linear %s 20480"},
	{"two", "0 1024 linear %s 32768\n1024 2048 zero\n3072 8 error"},
	{"zeros", "0 8388608 zero"},
	{"bad", "0 64 error"},
	{"origin", "0 20480 snapshot-origin /dev/mapper/low"},
	{"snap", "0 20480 snapshot /dev/mapper/low /dev/mapper/cow P 8"},
	{"meta", "0 8192 linear %s 40960"},
	{"era", "0 20480 era /dev/mapper/meta /dev/mapper/two2 128"},
	{"striped", "0 2048 striped 2 128 %s 65536 %s 81920"},
}

// tables returns the devices of stack over a disk whose stores and metadata are empty.
func tables(t *testing.T) []struct{ name, table string } {
	t.Helper()
	guest.Modprobe(t, "dm-snapshot", "dm-era", "dm-zero")
	disk := guest.Disk(t, "data")
	guest.Run(t, "dd", "if=/dev/zero", "of="+disk, "bs=1M", "count=32", "conv=fsync")
	all := append([]struct{ name, table string }{{"two2", "0 20480 linear %s 100000"}}, stack...)
	for i := range all {
		all[i].table = strings.ReplaceAll(all[i].table, "%s", disk)
	}
	return all
}

// What dmsetup has made, linux/dm sees as dmsetup does.
func TestDevicesOfDmsetup(t *testing.T) {
	ctl := open(t)
	all := tables(t)
	for _, d := range all {
		guest.Mapper(t, d.name, d.table)
	}
	for _, d := range all {
		agree(t, ctl, d.name)
	}
}

// What linux/dm has made, dmsetup sees as linux/dm does, node and all.
func TestDevicesForDmsetup(t *testing.T) {
	ctl := open(t)
	all := tables(t)
	for _, d := range all {
		var table []dm.Target
		for line := range strings.Lines(d.table) {
			var one dm.Target
			_, err := fmt.Sscan(line, &one.Start, &one.Len, &one.Type)
			must(t, nil, err)
			if f := strings.SplitN(strings.TrimSpace(line), " ", 4); len(f) == 4 {
				one.Params = f[3]
			}
			table = append(table, one)
		}
		info := device(t, ctl, d.name, table...)
		if got := guest.Sectors(t, info.Path()); got != fmt.Sprint(table[len(table)-1].Start+table[len(table)-1].Len) {
			t.Errorf("%s has %s sectors", info.Path(), got)
		}
	}
	for _, d := range all {
		agree(t, ctl, d.name)
	}
}

// Names and UUIDs that the kernel stores otherwise than people read them are the
// same to dmsetup.
func TestNamesAsDmsetupHasThem(t *testing.T) {
	ctl := open(t)
	for _, name := range []string{"a b", "x ä#+-.:=@_", `back\slash`, strings.Repeat("n", 127)} {
		uuid := "uu id-" + name[:1]
		_, err := ctl.Create(name, uuid)
		must(t, nil, err)
		_, err = ctl.Load(name, []dm.Target{target(8, "error", "")}, dm.LoadOptions{})
		must(t, nil, err)
		info, err := ctl.Resume(name)
		must(t, nil, err)
		if info.Name != name || info.UUID != uuid {
			t.Errorf("%+v", info)
		}
		agree(t, ctl, name)
		guest.Run(t, "dmsetup", "remove", name)
		if _, err := os.Lstat(info.Path()); err == nil {
			t.Errorf("dmsetup did not remove the node of %q", name)
		}
		guest.Mapper(t, name, "0 8 error")
		agree(t, ctl, name)
	}
}

// A device goes through its states, and dmsetup sees each.
func TestStatesOfADevice(t *testing.T) {
	ctl := open(t)
	disk := guest.Disk(t, "data")
	_, err := ctl.Create("states", "")
	must(t, nil, err)
	gone := false
	t.Cleanup(func() {
		if !gone {
			remove(t, "states")
		}
	})
	check := func(want string, info dm.Info, err error) {
		t.Helper()
		must(t, nil, err)
		if got := asDmsetup(info); !strings.HasSuffix(got, "|"+want) {
			t.Errorf("%s, want %s", got, want)
		}
		same(t, "info", asDmsetup(info), guest.Run(t, "dmsetup", "info", "-c", "--noheadings", "--separator", "|",
			"-o", "name,uuid,major,minor,open,segments,events,attr", info.Name))
	}
	info, err := ctl.Info("states")
	check("---w", info, err)
	if table, _, err := ctl.Table("states"); err != nil || len(table) != 0 {
		t.Errorf("a device without a table has %v (%v)", table, err)
	}
	info, err = ctl.Load("states", []dm.Target{target(8, "linear", "%s 0", disk)}, dm.LoadOptions{ReadOnly: true})
	check("-I-w", info, err)
	inactive, _, err := ctl.InactiveTable("states")
	must(t, nil, err)
	same(t, "inactive table", lines(inactive), guest.Run(t, "dmsetup", "table", "--inactive", "states"))
	info, err = ctl.Clear("states")
	check("---w", info, err)
	_, err = ctl.Load("states", []dm.Target{target(8, "linear", "%s 0", disk)}, dm.LoadOptions{ReadOnly: true})
	must(t, nil, err)
	info, err = ctl.Resume("states")
	check("L--r", info, err)
	_, err = ctl.Load("states", []dm.Target{target(16, "linear", "%s 0", disk)}, dm.LoadOptions{})
	must(t, nil, err)
	info, err = ctl.Suspend("states", dm.SuspendOptions{NoLockFS: true, NoFlush: true})
	check("LIsr", info, err)
	info, err = ctl.Resume("states")
	check("L--w", info, err)
	must(t, nil, ctl.Rename("states", "other states"))
	gone = true
	t.Cleanup(func() { remove(t, "other states") })
	info, err = ctl.Info("other states")
	check("L--w", info, err)
	agree(t, ctl, "other states")
	if _, err := os.Lstat("/dev/mapper/states"); err == nil {
		t.Error("the node has its old name still")
	}
}

// Tables and lists that do not fit the first buffer come whole.
func TestLongReplies(t *testing.T) {
	ctl := open(t)
	disk := guest.Disk(t, "data")
	var table []dm.Target
	for i := range uint64(3000) {
		table = append(table, dm.Target{Start: 8 * i, Len: 8, Type: "linear", Params: fmt.Sprintf("%s %d", disk, 8*(i^1))})
	}
	device(t, ctl, "long", table...)
	agree(t, ctl, "long")
	for i := range 150 {
		name := fmt.Sprintf("%03d-%s", i, strings.Repeat("x", 120))
		_, err := ctl.Create(name, name)
		must(t, nil, err)
		t.Cleanup(func() { remove(t, name) })
	}
	agreeOnList(t, ctl)
}

func TestTargetsAreThoseOfDmsetup(t *testing.T) {
	ctl := open(t)
	v, err := ctl.TargetVersion("delay") // a module that nothing has loaded
	must(t, nil, err)
	kinds, err := ctl.Targets()
	must(t, nil, err)
	var ours []string
	for _, k := range kinds {
		ours = append(ours, fmt.Sprintf("%-16s v%v", k.Name, k.Version))
	}
	same(t, "targets", strings.Join(ours, "\n"), guest.Run(t, "dmsetup", "targets"))
	if !strings.Contains(strings.Join(ours, "\n"), fmt.Sprintf("%-16s v%v", "delay", v)) {
		t.Errorf("delay %v is not among\n%s", v, strings.Join(ours, "\n"))
	}
}

// Messages reach their target, and answers come back.
func TestMessages(t *testing.T) {
	ctl := open(t)
	device(t, ctl, "stats", target(64, "zero", ""))
	id, err := ctl.Message("stats", 0, "@stats_create - /1")
	if err != nil || id != "0" {
		t.Errorf("region %q, %v", id, err)
	}
	answer, err := ctl.Message("stats", 0, "@stats_list")
	must(t, nil, err)
	same(t, "answer", strings.TrimSpace(answer), guest.Run(t, "dmsetup", "message", "stats", "0", "@stats_list"))
}
