package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/track"
	"tidemark/track/bpf"
	"tidemark/track/cow"
	"tidemark/track/thin"
	"tidemark/transfer"
	"tidemark/transfer/names"
	"tidemark/transfer/tracking"
)

func newTrack(g *globals) *cobra.Command {
	return command{
		use: "track", short: "Follow the writes to block devices",
		long: `Starts, stops and questions the tracking of block devices. "tidemark mirror" starts it by itself; these commands are for starting earlier, and for programs that copy on their own.

Tracking goes on when tidemark ends, crashes or is upgraded, unless the new version needs other programs in the kernel, which it says. A reboot ends it, unless "tidemark boot install --track" was told to save it. A partition is tracked with its whole disk. A DEVICE is named by its path, the mount point of its filesystem, or UUID=, LABEL=, PARTUUID= or PARTLABEL=.`,
		example: `tidemark track start /dev/vdb
tidemark track status
tidemark track changes /dev/vdb --since bpf:92d1f0c55a3b7e10:1`,
		exits: []exitCode{exitMarkLost},
	}.build(newTrackStart(g), newTrackStop(g), newTrackStatus(g), newTrackChanges(g), newTrackMarkDirty(g), newTrackMap(g), newTrackSave(g), newTrackResume(g))
}

// started is what "track start" says of one device.
type started struct {
	Device      string     `json:"device"`
	Mark        track.Mark `json:"mark"`
	Granularity int64      `json:"granularity"` // bytes
}

func newTrackStart(g *globals) *cobra.Command {
	var blockSize byteSize
	var asJSON bool
	cmd := command{
		use: "start DEVICE...", short: "Start tracking, and print a mark of this moment",
		long:    `Starts to follow the writes to each DEVICE, and prints a mark: a name of this moment, for "tidemark track changes". Starting twice is no error; the mark is new each time. The newest 16 marks made so are kept; asking from a mark makes it the newest.`,
		example: "tidemark track start /dev/vdb /dev/vdc1",
		args:    cobra.MinimumNArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				device, err := names.Source(cmd.Context(), name)
				if err != nil {
					return err
				}
				o := g.trackOptions()
				o.BlockSize = int64(blockSize)
				s, err := startTracking(cmd.Context(), device, o)
				if err != nil {
					return err
				}
				if err := printStarted(cmd.OutOrStdout(), s, asJSON); err != nil {
					return err
				}
			}
			return nil
		},
	}.build()
	addSize(cmd, &blockSize, "block-size", "granularity, a power of two from 4K on; by default 4K up to a DEVICE of 1 TiB, then more")
	addJSON(cmd, &asJSON, "one object a line for each device")
	return cmd
}

func printStarted(w io.Writer, s started, asJSON bool) error {
	if asJSON {
		return printJSON(w, s)
	}
	_, err := fmt.Fprintf(w, "%s\t%s\n", s.Device, s.Mark)
	return err
}

func startTracking(ctx context.Context, device string, o bpf.Options) (s started, err error) {
	o.Drain = func(ctx context.Context) error { return tracking.Drain(ctx, device, transfer.DefaultMaxFreeze) }
	source, err := block.Open(device, block.Options{})
	if err != nil {
		return s, fmt.Errorf("track: %w", err)
	}
	live, mark, err := bpf.Start(ctx, source, o)
	if err := errors.Join(err, source.Close()); err != nil {
		return s, err
	}
	return started{device, mark, live.Granularity()}, live.Close()
}

func newTrackStop(g *globals) *cobra.Command {
	return command{
		use: "stop DEVICE...", short: "Stop tracking; all marks of the devices are lost",
		long:    `Stops tracking the disk of each DEVICE; all its marks are lost. Of a thin volume it removes the snapshots in the pool that are kept as marks. What a start of tracking that was killed has left in the kernel, of any disk, is removed as well; "tidemark track status" tells of it.`,
		example: "tidemark track stop /dev/vdb",
		args:    cobra.MinimumNArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, name := range args {
				device, err := names.Source(cmd.Context(), name)
				if err == nil {
					err = g.stopTracking(cmd.Context(), device)
				}
				if errors.Is(err, bpf.ErrNotTracked) {
					err = hinted{err, `"tidemark track status" lists what is tracked`}
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		},
	}.build()
}

// stopTracking ends the tracking by eBPF of a device, and removes the snapshots that are kept of
// a thin volume. It is enough when there was one of them.
func (g *globals) stopTracking(ctx context.Context, device string) error {
	kept := 0
	if source, err := block.Open(device, block.Options{}); err == nil {
		kept, err = thin.Forget(ctx, source, thin.Options{StateDir: g.stateDir, RunDir: g.trackOptions().RunDir, Note: func(string, ...any) {}})
		err = errors.Join(err, source.Close())
		if err != nil && !errors.Is(err, thin.ErrNotThin) {
			return err
		}
	}
	err := bpf.Stop(ctx, device, g.trackOptions())
	if kept > 0 && errors.Is(err, bpf.ErrNotTracked) {
		return nil
	}
	return err
}

func newTrackStatus(g *globals) *cobra.Command {
	var asJSON bool
	cmd := command{
		use: "status [DEVICE...]", short: "Show what is tracked",
		example: "tidemark track status\n# for programs\ntidemark track status --json /dev/vdb",
		args:    cobra.ArbitraryArgs,
		run: func(cmd *cobra.Command, args []string) error {
			all, err := statusOf(cmd.Context(), args, g.trackOptions())
			if err != nil {
				return err
			}
			lasting, err := g.lasting()
			if err != nil {
				return err
			}
			for i := range all {
				all[i].LostAtReboot = lasting.Lost(all[i].Disk)
			}
			if err := noteLeftovers(cmd.Context(), cmd.ErrOrStderr(), g.trackOptions()); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), all)
			}
			return printTracked(cmd.OutOrStdout(), all)
		},
	}.build()
	addJSON(cmd, &asJSON, "one array")
	return cmd
}

// statusOf tells of the disks of the devices, or of all without any.
func statusOf(ctx context.Context, devices []string, o bpf.Options) ([]bpf.Status, error) {
	all, err := bpf.List(ctx, o)
	if err != nil || len(devices) == 0 {
		return all, err
	}
	chosen := []bpf.Status{}
	for _, name := range devices {
		device, err := names.Source(ctx, name)
		if err != nil {
			return nil, err
		}
		id, err := block.Identify(device)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(all, func(s bpf.Status) bool { return s.Disk == id.Disk })
		if i < 0 {
			return nil, fmt.Errorf("track: status: %s: %w", device, bpf.ErrNotTracked)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

func printTracked(w io.Writer, all []bpf.Status) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "nothing is tracked")
		return err
	}
	for _, s := range all {
		if _, err := fmt.Fprintf(w, "/dev/%s: %s, in blocks of %s\n", s.Disk, size(s.Size), size(s.Granularity)); err != nil {
			return err
		}
		table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintf(table, "  since\t%s\n", stamp(s.Since))
		fmt.Fprintf(table, "  changed\t%s in epoch %d\n", size(s.Changed), s.Epoch)
		fmt.Fprintf(table, "  misses\t%d\n", s.Misses)
		fmt.Fprintf(table, "  memory\t%s\n", size(s.Memory))
		if s.MergesUnseen {
			fmt.Fprintf(table, "  merges\tof a snapshot into it (lvconvert --merge) are not seen on this kernel: use --tracker scan once after one\n")
		}
		if s.Lost != "" {
			fmt.Fprintf(table, "  lost\tall marks: %s\n", s.Lost)
		}
		fmt.Fprintf(table, "  reboot\t%s\n", cmp.Or(s.LostAtReboot, "the marks are kept when it is clean"))
		for _, m := range s.Marks {
			fmt.Fprintf(table, "  mark\t%s (%s, %s)\n", m.Mark, m.Owner, stamp(m.Time))
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// noteLeftovers tells of what interrupted starts have left in the kernel.
func noteLeftovers(ctx context.Context, w io.Writer, o bpf.Options) error {
	left, err := bpf.Leftovers(ctx, o)
	if errors.Is(err, fs.ErrPermission) {
		_, err = fmt.Fprintln(w, "tidemark: note: whether a start of tracking left something behind is told to root only")
		return err
	}
	if err != nil || len(left) == 0 {
		return err
	}
	_, err = fmt.Fprintf(w, "tidemark: note: a start of tracking did not end: %d objects in %s belong to no tracked disk; \"tidemark track stop\" of any device removes them\n",
		len(left), filepath.Dir(left[0]))
	return err
}

// changed is what "track changes" says.
type changed struct {
	Device      string     `json:"device"`
	Since       track.Mark `json:"since"`
	Until       track.Mark `json:"until"`
	Granularity int64      `json:"granularity"` // bytes
	Bytes       int64      `json:"bytes"`
	Extents     [][2]int64 `json:"extents"` // offset and length, bytes of the device
	set         extent.Set
}

func newTrackChanges(g *globals) *cobra.Command {
	var since string
	var tracker choice
	var asJSON bool
	cmd := command{
		use: "changes DEVICE", short: "Print which parts of a device changed since a mark",
		long: `Prints the parts of DEVICE that changed since a mark, one a line: offset and length in bytes. Every block whose content changed is among them; some may be whose content is what it was.

With --json there is also a mark of this moment ("until"), to ask from the next time. A part that is being written at this moment is told again then, so that a copy made in between is never left behind.

With --tracker cow:STORE the store of a live dm-snapshot of DEVICE is asked instead (see "tidemark mirror"). Without --since that is all that changed since the snapshot was made.`,
		example: `tidemark track changes /dev/vdb --since bpf:92d1f0c55a3b7e10:1
# for programs
tidemark track changes /dev/vdb --since bpf:92d1f0c55a3b7e10:1 --json`,
		exits: []exitCode{exitMarkLost},
		args: func(cmd *cobra.Command, args []string) error {
			if since == "" && tracker.value == bpf.Kind {
				return errors.New("--since MARK is needed")
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		run: func(cmd *cobra.Command, args []string) error {
			device, err := names.Source(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			var c changed
			if store, ok := strings.CutPrefix(tracker.value, cow.Kind+":"); ok {
				c, err = changesInStore(cmd.Context(), device, store, track.Mark(since))
			} else {
				c, err = changesSince(cmd.Context(), device, track.Mark(since), asJSON, g.trackOptions())
			}
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), asJSON)
		},
	}.build()
	cmd.Flags().StringVar(&since, "since", "", "`mark` to start from, as printed by \"track start\" and \"track status\"")
	addChoice(cmd, &tracker, "tracker", "what to ask: bpf is the tracking that is on; cow:STORE the store of a live snapshot, by its device or that of the snapshot", bpf.Kind, "cow:STORE")
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

// changesInStore asks the store of a snapshot.
func changesInStore(ctx context.Context, device, store string, since track.Mark) (c changed, err error) {
	source, err := block.Open(device, block.Options{})
	if err != nil {
		return c, fmt.Errorf("track: %w", err)
	}
	defer source.Close()
	t, err := cow.Open(source, store)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if since == "" {
		since = t.Beginning()
	}
	cut, err := t.Cut(ctx)
	if err != nil {
		return c, err
	}
	set, err := t.Changes(ctx, since, cut.Mark)
	return changed{Device: device, Since: since, Until: cut.Mark, Granularity: t.Granularity(), Bytes: set.Bytes(), set: set}, err
}

// changesSince asks without starting anything: where nothing is tracked, every
// mark is lost. The mark of this moment is kept when it is to be told; the other one
// is renewed, so that it can be asked from any number of times.
func changesSince(ctx context.Context, device string, since track.Mark, tell bool, o bpf.Options) (c changed, err error) {
	if !since.Valid() {
		return c, fmt.Errorf("--since %q: %w", since, track.ErrBadMark)
	}
	source, err := block.Open(device, block.Options{})
	if err != nil {
		return c, fmt.Errorf("track: %w", err)
	}
	live, err := bpf.Attach(ctx, source, o)
	if err := errors.Join(err, source.Close()); errors.Is(err, bpf.ErrNotTracked) {
		return c, &track.LostError{Mark: since, Reason: device + " is not tracked"}
	} else if err != nil {
		return c, track.About(since, err)
	}
	defer func() { err = errors.Join(err, live.Close()) }()
	cut, err := live.Cut(ctx)
	if err != nil {
		return c, err
	}
	set, err := live.Changes(ctx, since, cut.Mark)
	if err != nil {
		return c, err
	}
	if err := live.Remember(ctx, since); err != nil {
		return c, err
	}
	if tell {
		if err := live.Remember(ctx, cut.Mark); err != nil {
			return c, err
		}
	}
	c = changed{Device: device, Since: since, Until: cut.Mark, Granularity: live.Granularity(), Bytes: set.Bytes(), set: set}
	return c, live.Persist(ctx)
}

func (c changed) print(w io.Writer, asJSON bool) error {
	if asJSON {
		c.Extents = pairsOf(c.set)
		return printJSON(w, c)
	}
	return printExtents(w, c.set)
}

// pairsOf returns the offsets and lengths of the extents of a set, in bytes.
func pairsOf(set extent.Set) [][2]int64 {
	list := [][2]int64{}
	for _, e := range set.Extents() {
		list = append(list, [2]int64{e.Off, e.Len})
	}
	return list
}

// printExtents prints offset and length of each extent, in bytes, one a line.
func printExtents(w io.Writer, set extent.Set) error {
	b := bufio.NewWriter(w)
	for _, e := range set.Extents() {
		fmt.Fprintln(b, e.Off, e.Len)
	}
	return b.Flush()
}

// extentList is a set for programs.
type extentList struct {
	Bytes   int64      `json:"bytes"`
	Extents [][2]int64 `json:"extents"`
}

// printSet prints a set for people, or for programs.
func printSet(w io.Writer, set extent.Set, asJSON bool) error {
	if asJSON {
		return printJSON(w, extentList{set.Bytes(), pairsOf(set)})
	}
	return printExtents(w, set)
}
