// Package early does what a boot needs before anything is mounted: it opens the devices of the table
// of package boot, begins to track the disk of the root filesystem, and brings persistent snapshots
// up.
//
// For most uses, set the folders and call [Opener.Open] with the names of a command line, or with a
// stage; [Remedy] tells what to do after an error. It is what both "tidemark boot open" and the
// program of the initramfs do. It mounts nothing, and is for one goroutine at a time.
package early

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"tidemark/block"
	"tidemark/boot"
	"tidemark/linux/dmera"
	"tidemark/snapshot"
	"tidemark/track/bpf"
)

// Opener opens what a table lists. The zero value works, but says nothing.
type Opener struct {
	Era       dmera.Options
	Track     bpf.Options
	Snapshots snapshot.Options
	Wait      time.Duration // for devices that are not there yet
	Talk      io.Writer     // gets a line for each thing that was done; may be nil
}

// ErrSnapshots means that a persistent snapshot is neither up nor dropped: its disk must not be
// mounted.
var ErrSnapshots = errors.New("a persistent snapshot could not be brought up")

// Devices opens and notes the devices of a table alone.
func (o Opener) Devices() boot.Opener {
	return boot.Opener{Options: o.Era, Wait: o.Wait, Log: func(e boot.Entry, done string) { o.say("%s %s", e.Path(), done) }}
}

func (o Opener) say(format string, args ...any) {
	if o.Talk != nil {
		fmt.Fprintf(o.Talk, "tidemark: "+format+"\n", args...)
	}
}

// Open opens the devices of these names, or else all of a stage, or without one all of the table. In
// the initramfs the disk of the root filesystem is tracked from then on. An error wraps
// boot.ErrNotOpen, boot.ErrNoEntry, boot.ErrHibernation or ErrSnapshots.
func (o Opener) Open(ctx context.Context, table boot.Tab, stage boot.Stage, names []string) error {
	if stage == boot.StageInitramfs {
		o.track(ctx, table.TrackedRoot())
	}
	entries, err := chosen(table, stage, names)
	if err != nil {
		return err
	}
	isEra := func(e boot.Entry) bool { return !e.Linear() }
	if stage == boot.StageInitramfs && slices.ContainsFunc(entries, isEra) {
		if err := boot.Hibernated(); err != nil {
			return err
		}
	}
	if err := o.Devices().Open(ctx, entries); err != nil {
		return err
	}
	return o.snapshots(ctx, entries)
}

func chosen(table boot.Tab, stage boot.Stage, names []string) ([]boot.Entry, error) {
	switch {
	case len(names) == 0 && stage == "":
		return table.Entries(), nil
	case len(names) == 0:
		return table.Stage(stage), nil
	}
	var entries []boot.Entry
	for _, name := range names {
		e, err := table.Find(name)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// track begins to track the disk of the root filesystem, once it is there. A boot is not stopped
// when that fails: marks are lost then, and "track resume" says so.
func (o Opener) track(ctx context.Context, disk string) {
	if disk == "" {
		return
	}
	if boot.Await(ctx, disk, time.Now().Add(o.Wait)) != nil {
		return // nothing mounts root then, or "track resume" says that this did not come to it
	}
	source, err := block.Open(disk, block.Options{})
	if err == nil {
		err = errors.Join(bpf.Early(ctx, source, o.Track), source.Close())
	}
	if err != nil {
		o.say("marks of %s from before the boot are lost: %v", disk, err)
	}
}

// snapshots brings up the persistent snapshots of linear devices, before these are mounted.
func (o Opener) snapshots(ctx context.Context, entries []boot.Entry) error {
	var failed error
	for _, e := range entries {
		if !e.Linear() {
			continue
		}
		done, err := snapshot.Assemble(ctx, o.Snapshots, e.Name, o.Wait)
		for _, text := range done {
			o.say("%s", text)
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%w: %w", ErrSnapshots, err))
		}
	}
	return failed
}

// Instead returns the path of the device that is to be mounted in place of the data device at a
// path; "" for the data device itself.
func Instead(table boot.Tab, path string) string {
	if e, ok := table.Instead(path); ok {
		return e.Path()
	}
	return ""
}

// Remedy tells a user what to do after an error of Open, "" where that is not known.
func Remedy(err error) string {
	var failure *boot.Failure
	switch {
	case errors.As(err, &failure):
		return failure.Entry.Remedy()
	case errors.Is(err, ErrSnapshots):
		return `do not mount the disk before "tidemark snapshot repair" succeeds`
	}
	return ""
}
