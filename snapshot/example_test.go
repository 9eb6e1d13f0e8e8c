package snapshot_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"tidemark/linux/dmera"
	"tidemark/linux/dmhold"
	"tidemark/linux/fsfreeze"
	"tidemark/linux/reexec"
	"tidemark/snapshot"
	"tidemark/track/bpf"
)

// TestMain begins as the main of a program that takes snapshots has to.
func TestMain(m *testing.M) {
	reexec.Main(fsfreeze.Watchdog, dmhold.Holder, dmera.Step)
	os.Exit(m.Run())
}

// A backup program takes two disks at one instant, copies what changed since the last time from the
// images, looks whether they held for as long, and goes on without them. Main of package reexec has been
// called first thing in its main, with the parts of fsfreeze, dmhold and dmera.
func Example() {
	ctx := context.Background()
	o := snapshot.Options{StateDir: "/var/lib/backup", Track: bpf.Options{RunDir: "/run/backup"}}

	s, err := snapshot.Find(o, "nightly")
	switch {
	case err == nil: // it was left incremental; now the next one
		err = s.ToSnapshot(ctx, snapshot.Next{MaxFreeze: 30 * time.Second})
	default:
		s, err = snapshot.Create(ctx, o, snapshot.Request{
			Name: "nightly", Track: true, MaxFreeze: 30 * time.Second,
			Devices: []snapshot.Device{{Path: "/dev/mapper/db"}, {Path: "/dev/mapper/log"}},
		})
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, v := range s.Volumes {
		fmt.Println("copy from", s.Image(v), "all of it the first time, then what", s.ListPath(v), "lists")
	}
	if err := s.Watch(ctx, time.Second); err != nil { // an event, as that a store got full, or a second
		fmt.Println(err)
	}
	if st, err := s.Status(); err != nil || st.Lost != "" {
		fmt.Println("what was copied is of no use, and the next one begins anew:", st.Lost, err)
		fmt.Println(s.Destroy(ctx, false))
		return
	}
	if err := s.ToIncremental(ctx); err != nil {
		fmt.Println(err)
		return
	}
	for _, v := range s.Volumes {
		changed, err := s.Changes(ctx, v)
		fmt.Println(v.Name, "has changed by", changed.Bytes(), "bytes since", err)
	}
}

// The example runs in a guest of test/vm, which has its devices.
func TestExample(t *testing.T) {
	if _, err := os.Stat("/dev/mapper/db"); err != nil {
		t.Skip("its devices are those of a guest: TestTheExampleOfPackageSnapshot runs it")
	}
	Example()
}
