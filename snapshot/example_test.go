package snapshot_test

import (
	"context"
	"fmt"
	"time"

	"tidemark/linux/dmera"
	"tidemark/linux/dmhold"
	"tidemark/linux/fsfreeze"
	"tidemark/linux/reexec"
	"tidemark/snapshot"
	"tidemark/track/bpf"
)

// A backup program takes two disks at one instant, copies what changed since the last time from the
// images, looks whether they held for as long, and goes on without them. It is compiled only: the
// devices are not there.
func Example() {
	reexec.Main(fsfreeze.Watchdog, dmhold.Holder, dmera.Step) // the first thing that a program's main does
	ctx := context.Background()
	o := snapshot.Options{StateDir: "/var/lib/backup", Track: bpf.Options{RunDir: "/run/backup"}}

	s, err := snapshot.Find(o, "nightly")
	switch {
	case err == nil: // it was left incremental; now the next one
		err = s.ToSnapshot(ctx, snapshot.Next{MaxFreeze: 3 * time.Second})
	default:
		s, err = snapshot.Create(ctx, o, snapshot.Request{
			Name: "nightly", Track: true, MaxFreeze: 3 * time.Second,
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
	if st, err := s.Status(); err != nil || st.Lost != "" {
		fmt.Println("what was copied is of no use:", st.Lost, err)
	}
	if err := s.Watch(ctx, time.Second); err != nil { // an event, as that a store got full, or a second
		fmt.Println(err)
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
