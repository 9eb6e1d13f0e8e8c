//go:build linux

package dm_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/dm"
	"tidemark/linux/dmhold"
	"tidemark/linux/reexec"
	"tidemark/test/vm/guest"
)

// dies is a process that dies while the devices named in its arguments stand still.
var dies = reexec.Part{Name: "dm-test-dies", Run: func(args []string) int {
	ctl, err := dm.Open()
	if err != nil {
		return 2
	}
	p := dmhold.Plan{Limit: time.Hour}
	for _, name := range args {
		info, err := ctl.Info(name)
		if err != nil {
			return 2
		}
		p.Devices = append(p.Devices, dmhold.Device{Name: name, Dev: info.Dev(), Swap: true})
	}
	_, _ = dmhold.Hold(context.Background(), p, func(context.Context) error {
		return unix.Kill(os.Getpid(), unix.SIGKILL)
	})
	return 3
}}

// held makes two devices on the first disk, with another table waiting for each, and a plan to
// swap them.
func held(t *testing.T, ctl *dm.Control) dmhold.Plan {
	t.Helper()
	p := dmhold.Plan{Limit: time.Minute}
	for i, name := range []string{"heldA", "heldB"} {
		info := device(t, ctl, name, target(2048, "linear", "%s %d", guest.Disk(t, "data"), i*4096))
		_, err := ctl.Load(name, []dm.Target{target(2048, "linear", "%s %d", guest.Disk(t, "data"), i*4096+2048)}, dm.LoadOptions{})
		must(t, nil, err)
		p.Devices = append(p.Devices, dmhold.Device{Name: name, Dev: info.Dev(), Swap: true})
	}
	return p
}

// starts returns where the devices' tables begin on the disk, of devices that all go on and
// have no table waiting.
func starts(t *testing.T, ctl *dm.Control, p dmhold.Plan) (found []string) {
	t.Helper()
	for _, d := range p.Devices {
		table, info, err := ctl.Table(d.Name)
		must(t, nil, err)
		if info.Suspended || info.InactiveTable {
			t.Errorf("%s: suspended %v, a table waiting %v", d.Name, info.Suspended, info.InactiveTable)
		}
		_, start, _ := strings.Cut(table[0].Params, " ")
		found = append(found, start)
	}
	return found
}

// Devices change together, or are as they were, and always go on.
func TestHeldDevicesChangeTogetherOrGoOnAsTheyWere(t *testing.T) {
	before, after := []string{"0", "4096"}, []string{"2048", "6144"}
	errOurs := errors.New("the tracker cannot be cut")
	for _, c := range []struct {
		name    string
		plan    func(*dmhold.Plan)
		instant func(context.Context) error
		is      error
		want    []string
	}{
		{"all is well", nil, nil, nil, after},
		{"the instant fails", nil, func(context.Context) error { return errOurs }, errOurs, before},
		{"the time is up", func(p *dmhold.Plan) { p.Limit = time.Millisecond }, func(ctx context.Context) error {
			for !goesOn("heldA") {
			}
			return nil
		}, dmhold.ErrExpired, before},
		{"a message fails", func(p *dmhold.Plan) { p.Messages = []dmhold.Message{{Device: "heldA", Text: "no such message"}} }, nil, unix.EINVAL, before},
		{"no device to start", func(p *dmhold.Plan) { p.Start = []string{"none"} }, nil, nil, before},
		{"another device", func(p *dmhold.Plan) { p.Devices[1].Dev = p.Devices[0].Dev }, nil, dmhold.ErrRefused, nil},
		{"a table that is not the plan's", func(p *dmhold.Plan) { p.Devices[1].Swap = false }, nil, dmhold.ErrRefused, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctl := open(t)
			p := held(t, ctl)
			if c.plan != nil {
				c.plan(&p)
			}
			_, err := dmhold.Hold(t.Context(), p, func(ctx context.Context) error {
				for _, d := range p.Devices {
					if info, err := ctl.Info(d.Name); err != nil || !info.Suspended {
						t.Errorf("%s does not stand still: %v", d.Name, err)
					}
				}
				if c.instant != nil {
					return c.instant(ctx)
				}
				return nil
			})
			if wrong := (err == nil) != (c.name == "all is well"); wrong || c.is != nil && c.is != unix.EINVAL && !errors.Is(err, c.is) {
				t.Errorf("hold: %v", err)
			}
			if c.want == nil { // refused: the tables still wait
				for _, d := range p.Devices {
					_, err := ctl.Clear(d.Name)
					must(t, nil, err)
				}
				c.want = before
			}
			if got := starts(t, ctl, p); !slices.Equal(got, c.want) {
				t.Errorf("the tables begin at %v, want %v", got, c.want)
			}
		})
	}
}

// goesOn reports whether a device is not suspended.
func goesOn(name string) bool {
	ctl, err := dm.Open()
	if err != nil {
		return false
	}
	defer ctl.Close()
	info, err := ctl.Info(name)
	return err == nil && !info.Suspended
}

// Devices go on, as they were, when who held them is killed.
func TestHeldDevicesGoOnWhenTheirHolderIsKilled(t *testing.T) {
	ctl := open(t)
	p := held(t, ctl)
	if err := reexec.Command(dies, "heldA", "heldB").Run(); err == nil || err.Error() != "signal: killed" {
		t.Fatal(err)
	}
	for !goesOn("heldA") || !goesOn("heldB") {
	}
	if got := starts(t, ctl, p); !slices.Equal(got, []string{"0", "4096"}) {
		t.Errorf("the tables begin at %v", got)
	}
}

// What another program has frozen is told, and stays frozen by it alone.
func TestHeldFilesystemsOfOthers(t *testing.T) {
	guest.Modprobe(t, "ext4")
	ctl := open(t)
	info := device(t, ctl, "theirs", target(32768, "linear", "%s 0", guest.Disk(t, "data")))
	guest.Run(t, "mkfs.ext4", "-q", info.Path())
	dir := t.TempDir()
	guest.Run(t, "mount", info.Path(), dir)
	t.Cleanup(func() { guest.Run(t, "umount", dir) })
	guest.Run(t, "fsfreeze", "-f", dir)
	_, err := dmhold.Hold(t.Context(), dmhold.Plan{Limit: time.Minute, Devices: []dmhold.Device{{Name: "theirs", Dev: info.Dev()}}}, nil)
	guest.Run(t, "fsfreeze", "-u", dir)
	if err != nil && !errors.Is(err, dmhold.ErrFrozen) { // freezes nest from Linux 6.7 on
		t.Errorf("hold: %v", err)
	}
	if !goesOn("theirs") {
		t.Error("it is suspended")
	}
	guest.WriteFile(t, dir+"/after", "it goes on")
}
