package main

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tidemark/snapshot"
	"tidemark/transfer"
	"tidemark/transfer/names"
	"tidemark/words"
)

func (g *globals) snapshotOptions() snapshot.Options {
	return snapshot.Options{StateDir: g.stateDir, Track: g.trackOptions()}
}

func newSnapshot(g *globals) *cobra.Command {
	return command{
		use: "snapshot", short: "Take snapshots of disks in use, several at one instant",
		long: `Makes images of devices of device-mapper (LUKS, linear, striped and era ones, and plain disks that "tidemark adopt" has put a table over) as they were at one instant, while they are in use, with the kernel's own dm-snapshot. No spare volume is needed: the old blocks go to a file on the filesystem itself, or to where --store says.

A plain disk or partition has no table that could be changed while it is in use: "tidemark adopt" gives it one, and "tidemark mirror" needs none. LVM would change the table of a logical volume without asking: "create --store lvm" has LVM make a snapshot of one, in its group.

A snapshot ends with the boot, unless LVM made it, or it is taken with --persistent; "rollback" puts disks back to such a one. When its store is full its images can no longer be read, and the disk goes on unharmed.`,
		example: `tidemark snapshot create /dev/mapper/root /dev/mapper/data
tidemark snapshot status
tidemark snapshot destroy snap1`,
	}.build(newSnapshotCreate(g), newSnapshotList(g), newSnapshotStatus(g), newSnapshotGrow(g), newSnapshotDestroy(g), newSnapshotRollback(g), newSnapshotToIncremental(g), newSnapshotToSnapshot(g), newSnapshotEvents(g), newSnapshotRepair(g))
}

func newSnapshotCreate(g *globals) *cobra.Command {
	var req snapshot.Request
	var stores []string
	var size, chunk, reserve byteSize
	var asJSON bool
	cmd := command{
		use: "create DEVICE...", short: "Take a snapshot of all DEVICEs at one instant",
		long: `Takes a snapshot of all DEVICEs, of one instant, and prints the path of each image, /dev/mapper/DEVICE+NAME. Filesystems on the DEVICEs are frozen for the moment; for how long writers waited is told.

The first write to a chunk of DEVICE copies its old content to the store, and every snapshot has its own: with several snapshots of one disk each first write is slower still.

Without --store the store is a file .tidemark-NAME on the filesystem of DEVICE itself, ext4 or XFS, or the new file PATH there with --store PATH. It has its full size from the beginning, since it grows only into what belonged to no file at the instant; it is immutable, and in the image it reads as zeros. Else --store PATH is a new file on another filesystem (also one in memory), which can grow, or a block device, all of which is overwritten, or parts of devices that nobody uses, DEVICE:START+LENGTH,... --store zram is memory, compressed: for little only, since what is written back from memory takes memory then. With several DEVICEs it is DEVICE=PATH, for each that is to have another place. --store lvm is for logical volumes, all DEVICEs or none: lvm2 makes the snapshot VG/NAME, or VG/VOLUME+NAME of each of several, which grow by "grow" or lvextend and outlive the boot. Of several the filesystems are frozen until the last has its snapshot, which Linux before 6.8 refuses.

With --track what changes since the instant is followed by eBPF, as "tidemark mirror" does: "tidemark snapshot to-incremental" needs that.

With --persistent the snapshot outlives reboots and power cuts, and DEVICE can be put back to it ("tidemark snapshot rollback"). DEVICE is then a disk or partition that "tidemark adopt" has put a table over, which systemd opens at boot, with ext4 or XFS; a store elsewhere is a disk or partition. It is dropped, and that is told, when the boot cannot tell that DEVICE was not used without it: after a boot past it, and with XFS after a power cut while it was mounted.

While there is a snapshot, DEVICE takes no discards: run fstrim when it is gone.`,
		example: `tidemark snapshot create /dev/mapper/data
# Two disks of one database, the store of the second on a third disk
tidemark snapshot create --name nightly --store /dev/mapper/db2=/srv/spare/db2.store /dev/mapper/db1 /dev/mapper/db2
# Two logical volumes at one instant, by LVM
tidemark snapshot create --store lvm --size 2G /dev/vg/db /dev/vg/log
# Two unused parts of a disk as the store
tidemark snapshot create --store /dev/sdd:1G+4G,/dev/sdd:20G+4G /dev/mapper/data`,
		exits: []exitCode{exitRefused, exitBusy, exitNoConverge},
		args:  cobra.MinimumNArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			var err error
			if req.Devices, err = g.snapshotDevices(cmd, args, stores, int64(size)); err != nil {
				return err
			}
			req.Chunk, req.Reserve = int64(chunk), int64(reserve)
			if req.Persistent {
				if err := outlives(req.Devices); err != nil {
					return err
				}
			}
			s, err := snapshot.Create(cmd.Context(), g.snapshotOptions(), req)
			if err != nil {
				return err
			}
			if asJSON {
				return printSnapshot(cmd.OutOrStdout(), s)
			}
			for _, v := range s.Volumes {
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), s.Image(v)); err != nil {
					return err
				}
			}
			return tellCreated(cmd.ErrOrStderr(), s)
		},
	}.build()
	cmd.Flags().StringVar(&req.Name, "name", "", "`name` of the snapshot; by default one that is free")
	cmd.Flags().StringArrayVar(&stores, "store", nil, "`path` of the store, DEVICE:START+LENGTH,..., zram, or lvm; a path of one of several DEVICEs is DEVICE=PATH")
	addSize(cmd, &size, "size", "size of each store; by default a tenth of DEVICE, or as much as changed in the last day where that is tracked and more; or what there is room for")
	addSize(cmd, &chunk, "chunk", "what a first write copies, a power of two from 4K to 1M; by default 8K")
	addSize(cmd, &reserve, "reserve", "what stores leave of the room on their filesystems; by default 64M, or a twentieth of a small one")
	cmd.Flags().BoolVar(&req.Track, "track", false, "follow what changes since, for \"tidemark snapshot to-incremental\"")
	cmd.Flags().BoolVar(&req.Writable, "writable", false, "images can be written to; that goes to the store, and the disk never sees it")
	cmd.Flags().BoolVar(&req.Persistent, "persistent", false, "the snapshot is there again after a reboot, and DEVICE can be put back to it")
	cmd.Flags().DurationVar(&req.MaxFreeze, "max-freeze", transfer.DefaultMaxFreeze, "how long writers may wait; then nothing is made")
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

// tellCreated tells people how it went.
func tellCreated(w io.Writer, s *snapshot.Snapshot) error {
	for _, v := range s.Volumes {
		if how := v.Sized(); how != "" {
			fmt.Fprintf(w, "snapshot %s: %s\n", s.Name, how)
		}
		if v.Store.Kind == snapshot.Zram {
			fmt.Fprintf(w, "snapshot %s: the old blocks of %s go to memory, also those that are written over to make memory free\n", s.Name, v.Name)
		}
	}
	if s.Frozen == 0 { // only LVM knows
		return nil
	}
	_, err := fmt.Fprintf(w, "snapshot %s: writers waited for %v\n", s.Name, s.Frozen.Round(time.Millisecond))
	return err
}

// snapshotDevices are the devices to take a snapshot of, with their stores.
func (g *globals) snapshotDevices(cmd *cobra.Command, args, stores []string, size int64) ([]snapshot.Device, error) {
	var devices []snapshot.Device
	for _, name := range args {
		path, err := names.Source(cmd.Context(), name)
		if err != nil {
			return nil, err
		}
		devices = append(devices, snapshot.Device{Path: path, Size: size})
	}
	for _, text := range stores {
		device, path, ok := strings.Cut(text, "=")
		if !ok && len(args) == 1 {
			device, path = args[0], text
		}
		all := !ok && (text == snapshot.LVM || text == snapshot.Zram) // no place that only one can have
		if all {
			path = text
		}
		found := false
		for i := range devices {
			if (all || args[i] == device) && path != "" && devices[i].Store == "" && len(devices[i].Ranges) == 0 {
				var err error
				if devices[i].Ranges, err = storeRanges(path); err != nil {
					return nil, usageError{fmt.Errorf("--store %q: %w", text, err)}
				}
				if found = true; len(devices[i].Ranges) == 0 {
					devices[i].Store = path
				}
			}
		}
		if !found {
			return nil, usageError{fmt.Errorf("--store %q: want PATH with one DEVICE, DEVICE=PATH with several, once for each", text)}
		}
	}
	return devices, nil
}

// rangeOf is DEVICE:START+LENGTH. A name below /dev/disk/by-path has colons of its own.
var rangeOf = regexp.MustCompile(`^(.+):([0-9][0-9A-Za-z]*)\+([0-9][0-9A-Za-z]*)$`)

// storeRanges are the parts of devices that a store is to consist of; none when it is no list of them.
func storeRanges(text string) (ranges []snapshot.Range, err error) {
	for one := range strings.SplitSeq(text, ",") {
		m := rangeOf.FindStringSubmatch(one)
		if m == nil {
			if ranges != nil {
				return nil, fmt.Errorf("%q: want DEVICE:START+LENGTH", one)
			}
			return nil, nil
		}
		var off, length byteSize
		err := length.Set(m[3])
		if strings.Trim(m[2], "0") != "" { // which is no size
			err = errors.Join(err, off.Set(m[2]))
		}
		if err != nil {
			return nil, err
		}
		ranges = append(ranges, snapshot.Range{Path: m[1], Off: int64(off), Len: int64(length)})
	}
	return ranges, nil
}

func newSnapshotList(g *globals) *cobra.Command {
	var asJSON bool
	cmd := command{
		use: "list", short: "List the snapshots",
		example: "tidemark snapshot list --json",
		args:    cobra.NoArgs,
		run: func(cmd *cobra.Command, _ []string) error {
			all, err := g.snapshots(nil)
			if err != nil {
				return err
			}
			return printSnapshots(cmd.OutOrStdout(), all, asJSON)
		},
	}.build()
	addJSON(cmd, &asJSON, "one array")
	return cmd
}

func newSnapshotStatus(g *globals) *cobra.Command {
	var asJSON bool
	cmd := command{
		use: "status [NAME...]", short: "Tell how snapshots are, and how full their stores",
		long:    `Tells of each snapshot, or of those that are named, where its images are, how full the stores are, and whether it is lost: because a store was full or failed, or because another program has changed the tables.`,
		example: "tidemark snapshot status snap1",
		exits:   []exitCode{exitDamaged},
		args:    cobra.ArbitraryArgs,
		run: func(cmd *cobra.Command, args []string) error {
			all, err := g.snapshots(args)
			if err != nil {
				return err
			}
			if err := printSnapshots(cmd.OutOrStdout(), all, asJSON); err != nil {
				return err
			}
			for _, s := range all {
				if s.Lost != "" && len(args) > 0 {
					return fmt.Errorf("%s: %w: %s", s.Name, errSnapshotLost, s.Lost)
				}
			}
			return nil
		},
	}.build()
	addJSON(cmd, &asJSON, "one array")
	return cmd
}

// errSnapshotLost says that the images of a snapshot cannot be read any more.
var errSnapshotLost = errors.New("the snapshot is lost")

// snapshots returns how those of some names are, of all without names.
func (g *globals) snapshots(args []string) (all []snapshot.Status, err error) {
	var list []*snapshot.Snapshot
	if len(args) == 0 {
		if list, err = snapshot.List(g.snapshotOptions()); err != nil {
			return nil, err
		}
	}
	for _, name := range args {
		s, err := snapshot.Find(g.snapshotOptions(), name)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	all = []snapshot.Status{}
	for _, s := range list {
		st, err := s.Status()
		if err != nil {
			return nil, err
		}
		all = append(all, st)
	}
	return all, nil
}

func printSnapshot(w io.Writer, s *snapshot.Snapshot) error {
	st, err := s.Status()
	if err != nil {
		return err
	}
	return printJSON(w, struct {
		snapshot.Status
		FrozenMS float64 `json:"frozen_ms"`
	}{st, float64(s.Frozen.Microseconds()) / 1000})
}

func printSnapshots(w io.Writer, all []snapshot.Status, asJSON bool) error {
	if asJSON {
		return printJSON(w, all)
	}
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tab, "snapshot\tof\timage\tstore\tused\tstate")
	for _, s := range all {
		for _, v := range s.Volumes {
			state := "ok"
			switch {
			case v.Lost != "":
				state = "lost: " + v.Lost
			case s.Rollback:
				state = fmt.Sprintf("being rolled back to, %s left", size(v.Left))
			}
			name := s.Name + ", " + words.Time(s.Created)
			if s.Incremental {
				fmt.Fprintf(tab, "%s\t%s\t-\t-\t-\tincremental, %s\n", name, v.Name, state)
				continue
			}
			fmt.Fprintf(tab, "%s\t%s\t%s\t%s\t%s of %s\t%s\n", name, v.Name, v.Image, v.Store.Path, size(v.Used), size(v.Total), state)
		}
	}
	return tab.Flush()
}

func newSnapshotGrow(g *globals) *cobra.Command {
	var to byteSize
	cmd := command{
		use: "grow NAME [DEVICE]", short: "Make a store larger while it is in use",
		long:    `Makes the store of NAME larger: of DEVICE, as "tidemark snapshot status" names it, where NAME is of several. The store has to be a file. One on the filesystem of DEVICE itself gets only blocks that belonged to no file at the instant, where there are such, and the error says how large it is then; it is refused while there is another snapshot of DEVICE, and for a writable one.`,
		example: "tidemark snapshot grow nightly db2 --size 20G",
		exits:   []exitCode{exitRefused},
		args:    cobra.RangeArgs(1, 2),
		run: func(cmd *cobra.Command, args []string) error {
			s, err := snapshot.Find(g.snapshotOptions(), args[0])
			if err != nil {
				return err
			}
			for _, v := range s.Volumes {
				if len(args) == 1 && len(s.Volumes) == 1 || len(args) == 2 && (v.Name == args[1] || "/dev/mapper/"+v.Name == args[1]) {
					return s.Grow(cmd.Context(), v, int64(to))
				}
			}
			return usageError{fmt.Errorf("%s has %d volumes: give the DEVICE as \"tidemark snapshot status\" names it", args[0], len(s.Volumes))}
		},
	}.build()
	addSize(cmd, &to, "size", "how large the store is to be")
	_ = cmd.MarkFlagRequired("size") // there is such a flag
	return cmd
}

func newSnapshotDestroy(g *globals) *cobra.Command {
	var force bool
	cmd := command{
		use: "destroy NAME...", short: "End snapshots, and remove all that they consist of",
		long:    `Removes the images, the stores and their files, and puts the table back into each disk that it had before its first snapshot. An image that is mounted or open is refused; with --force, reading from it fails from then on.`,
		example: "tidemark snapshot destroy snap1 snap2",
		exits:   []exitCode{exitBusy},
		args:    cobra.MinimumNArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, name := range args {
				s, err := snapshot.Find(g.snapshotOptions(), name)
				if err == nil {
					err = s.Destroy(cmd.Context(), force)
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		},
	}.build()
	cmd.Flags().BoolVar(&force, "force", false, "also when an image is in use")
	return cmd
}

func newSnapshotRepair(g *globals) *cobra.Command {
	return command{
		use: "repair", short: "Remove what a crash or a reboot has left of snapshots",
		long:    `Ends snapshots that a command was cut off at, and removes the files of those that ended with a boot. Of persistent ones it notes what the next boot asks for, drops those that this boot went past, and takes up rollbacks. "tidemark snapshot create" does it first, and so does tidemark-snapshots.service at each boot.`,
		example: "tidemark snapshot repair",
		args:    cobra.NoArgs,
		run: func(cmd *cobra.Command, _ []string) error {
			done, err := snapshot.Repair(cmd.Context(), g.snapshotOptions())
			for _, text := range done {
				fmt.Fprintln(cmd.OutOrStdout(), text)
			}
			return err
		},
	}.build()
}
