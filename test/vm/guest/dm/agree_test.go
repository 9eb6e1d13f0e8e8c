//go:build linux

// Package dm_test runs in guests only (see package guest): what linux/dm does is what
// dmsetup sees, and the other way round.
package dm_test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark/linux/dm"
	"tidemark/linux/dmhold"
	"tidemark/linux/reexec"
	"tidemark/linux/sysfs"
	"tidemark/test/vm/guest"
)

func TestMain(m *testing.M) {
	reexec.Main(dmhold.Holder, dies)
	guest.Main(m)
}

// TestAOpensWithoutUdev is the first: nothing has loaded device-mapper yet, and
// nobody makes its node.
func TestAOpensWithoutUdev(t *testing.T) {
	if _, err := os.Stat("/sys/module/dm_mod"); err == nil {
		t.Fatal("device-mapper is loaded already")
	}
	ctl := open(t)
	node := control(t)
	if err := os.Remove("/dev/mapper/control"); err != nil {
		t.Fatal(err)
	}
	open(t)
	if again := control(t); again != node {
		t.Errorf("the control node was %s, and was made as %s", node, again)
	}
	v, err := ctl.Version()
	if said := guest.Run(t, "dmsetup", "version"); err != nil || !strings.Contains(said, v.String()) {
		t.Errorf("version %v (%v), dmsetup says %s", v, err, said)
	}
}

// control is the number of the control node.
func control(t *testing.T) string {
	t.Helper()
	return guest.Run(t, "stat", "-c", "%F %t:%T", "/dev/mapper/control")
}

func open(t *testing.T) *dm.Control {
	t.Helper()
	ctl, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ctl.Close() })
	return ctl
}

// must is for calls whose result is of no interest.
func must(t *testing.T, _ any, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// device makes a device with linux/dm and removes it at the end of the test.
func device(t *testing.T, ctl *dm.Control, name string, table ...dm.Target) dm.Info {
	t.Helper()
	info, err := ctl.Create(name, "")
	must(t, info, err)
	t.Cleanup(func() { remove(t, name) })
	_, err = ctl.Load(name, table, dm.LoadOptions{})
	must(t, nil, err)
	info, err = ctl.Resume(name)
	must(t, nil, err)
	return info
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := open(t).Remove(name, dm.RemoveOptions{Patience: time.Minute}); err != nil {
		t.Error(err)
	}
}

// target is one target over n sectors.
func target(n uint64, kind, format string, args ...any) dm.Target {
	return dm.Target{Len: n, Type: kind, Params: fmt.Sprintf(format, args...)}
}

// agree compares everything that linux/dm says of a device with what dmsetup says.
func agree(t *testing.T, ctl *dm.Control, name string) {
	t.Helper()
	table, info, err := ctl.Table(name)
	must(t, nil, err)
	same(t, "table", lines(table), guest.Run(t, "dmsetup", "table", name))
	status, _, err := ctl.Status(name, dm.StatusOptions{})
	must(t, nil, err)
	same(t, "status", lines(status), guest.Run(t, "dmsetup", "status", name))
	same(t, "info", asDmsetup(info), guest.Run(t, "dmsetup", "info", "-c", "--noheadings", "--separator", "|",
		"-o", "name,uuid,major,minor,open,segments,events,attr", name))
	for _, look := range []func() (dm.Info, error){
		func() (dm.Info, error) { return ctl.Info(name) },
		func() (dm.Info, error) { return ctl.Find(info.Major, info.Minor) },
		func() (dm.Info, error) { return ctl.Resolve(name) },
		func() (dm.Info, error) { return ctl.Resolve(info.Path()) },
		func() (dm.Info, error) { return ctl.Resolve(fmt.Sprintf("/dev/dm-%d", info.Minor)) },
	} {
		if again, err := look(); err != nil || again != info {
			t.Errorf("%s: %+v (%v), want %+v", name, again, err, info)
		}
	}
	deps, err := ctl.Deps(name)
	must(t, nil, err)
	same(t, "deps", fmt.Sprint(deps), fmt.Sprint(numbers(t, guest.Run(t, "dmsetup", "deps", "-o", "devno", name))))
	agreeOnList(t, ctl)
}

// agreeOnList compares the lists of devices.
func agreeOnList(t *testing.T, ctl *dm.Control) {
	t.Helper()
	list, err := ctl.List()
	must(t, nil, err)
	var ours []string
	for _, e := range list {
		info, err := ctl.Info(e.Name)
		if err != nil || e != (dm.Entry{Name: info.Name, UUID: info.UUID, Major: info.Major, Minor: info.Minor, EventNr: info.EventNr}) {
			t.Errorf("listed %+v, is %+v (%v)", e, info, err)
		}
		ours = append(ours, fmt.Sprintf("%s|%s|%d|%d", e.Name, e.UUID, e.Major, e.Minor))
	}
	said := guest.Run(t, "dmsetup", "info", "-c", "--noheadings", "--separator", "|", "-o", "name,uuid,major,minor")
	theirs := strings.Split(said, "\n")
	slices.Sort(ours)
	slices.Sort(theirs)
	same(t, "list", strings.Join(ours, "\n"), strings.Join(theirs, "\n"))
}

// asDmsetup writes a state as dmsetup's columns.
func asDmsetup(i dm.Info) string {
	attr := []byte("--" + "-" + "w")
	for n, on := range []bool{i.ActiveTable, i.InactiveTable, i.Suspended, i.ReadOnly} {
		if on {
			attr[n] = "LIsr"[n]
		}
	}
	return fmt.Sprintf("%s|%s|%d|%d|%d|%d|%d|%s", i.Name, i.UUID, i.Major, i.Minor, i.OpenCount, i.TargetCount, i.EventNr, attr)
}

func lines(table []dm.Target) string {
	var all []string
	for _, t := range table {
		all = append(all, t.String())
	}
	return strings.Join(all, "\n")
}

var number = regexp.MustCompile(`\((\d+)[:,] ?(\d+)\)`)

// numbers are the device numbers in dmsetup's output.
func numbers(t *testing.T, said string) []sysfs.Dev {
	t.Helper()
	all := []sysfs.Dev{}
	for _, m := range number.FindAllStringSubmatch(said, -1) {
		var d sysfs.Dev
		_, err := fmt.Sscan(m[1]+" "+m[2], &d.Major, &d.Minor)
		must(t, nil, err)
		all = append(all, d)
	}
	return all
}

// same compares texts whose lines may end with a space.
func same(t *testing.T, what, ours, theirs string) {
	t.Helper()
	trim := regexp.MustCompile(` +(\n|$)`)
	if theirs = trim.ReplaceAllString(theirs, "$1"); trim.ReplaceAllString(ours, "$1") != theirs {
		t.Errorf("%s:\n%s\ndmsetup says\n%s", what, ours, theirs)
	}
}
