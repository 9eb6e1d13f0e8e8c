package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tidemark/extent"
	format "tidemark/format/vault"
	"tidemark/linux/atomicfile"
	"tidemark/vault"
	"tidemark/vault/store"
)

// pointWords is what help says of the argument POINT.
const pointWords = `POINT is an id or its beginning, as "tidemark points" prints it; "latest", where the vault has one disk, or DISK@latest; DISK@2026-11-27T10:00, the last point of that time or before, in the zone of this machine where none is given; or DISK@-2d, the last one that is at least so old (-36h, -1w)`

// pointInfo is what is told of a point.
type pointInfo struct {
	ID      string    `json:"id"`
	Disk    string    `json:"disk"`
	Moment  time.Time `json:"moment"`
	Size    int64     `json:"bytes"`
	Changed int64     `json:"bytes_changed"` // that the tracker named, or the whole disk
	Read    int64     `json:"bytes_read"`
	Stored  int64     `json:"bytes_stored"`
	Frozen  bool      `json:"frozen"`
	Hooks   string    `json:"hooks,omitempty"` // how they ended; none: there were none
	Tags    []string  `json:"tags"`
	Run     string    `json:"run,omitempty"` // common to the points of one instant
	Host    string    `json:"host"`
	Tracker string    `json:"tracker"`
	View    string    `json:"view"`
	Mark    string    `json:"mark,omitempty"`
}

func infoOf(p vault.Point, disk string) pointInfo {
	return pointInfo{
		ID: p.Name.ID.String(), Disk: disk, Moment: p.Moment, Size: p.Size, Changed: p.Changed, Read: p.Read, Stored: p.Stored,
		Frozen: p.Frozen, Hooks: p.Hooks, Tags: append([]string{}, p.Tags...), Run: p.Run, Host: p.Host, Tracker: p.Tracker, View: p.View, Mark: p.Mark,
	}
}

func newPoints() *cobra.Command {
	var f vaultFlags
	var disk string
	var asJSON bool
	cmd := command{
		use: "points [VAULT]", short: "List the points of a vault",
		long: `Lists the points of a vault, the oldest first: id, disk, the moment of its content, size of the disk, how much of it had changed, how much the vault stored for it, whether filesystems were frozen at that moment, how the hooks of the run ended, and tags.

` + vaultAddress + `.`,
		example: `tidemark points /backup/vault
tidemark points --disk vdb1 --json /backup/vault`,
		exits: append(interruptible(), exitRefused, exitDamaged),
		args:  cobra.MaximumNArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			return f.with(cmd.Context(), args, func(v *openVault) error {
				all, err := v.points(cmd.Context(), disk)
				if err != nil {
					return err
				}
				return printPoints(cmd.OutOrStdout(), all, asJSON)
			})
		},
	}.build()
	f.add(cmd)
	cmd.Flags().StringVar(&disk, "disk", "", "list the points of the disk of that `name` alone")
	addJSON(cmd, &asJSON, "one object a line for each point")
	return cmd
}

// points lists the points of a disk; "": of all disks.
func (v *openVault) points(ctx context.Context, disk string) ([]pointInfo, error) {
	disks, err := v.Disks(ctx)
	if err != nil {
		return nil, err
	}
	names := map[format.ID]string{}
	var only format.ID
	for _, d := range disks {
		if names[d.ID] = d.Name; d.Name == disk {
			only = d.ID
		}
	}
	if disk != "" && only.IsZero() {
		return nil, fmt.Errorf("%v: %w: there is no disk %q", v.store, vault.ErrNoPoint, disk)
	}
	points, err := v.Points(ctx, only)
	var all []pointInfo
	for _, p := range points {
		name := names[p.Name.Disk]
		if name == "" {
			name = shortID(p.Name.Disk.String()) // its object is lost
		}
		all = append(all, infoOf(p, name))
	}
	return all, err
}

func printPoints(w io.Writer, all []pointInfo, asJSON bool) error {
	if asJSON {
		for _, p := range all {
			if err := printJSON(w, p); err != nil {
				return err
			}
		}
		return nil
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "POINT\tDISK\tOF\tSIZE\tCHANGED\tSTORED\tFROZEN\tHOOKS\tTAGS")
	for _, p := range all {
		frozen, hooks := "no", cmp.Or(p.Hooks, "none")
		if p.Frozen {
			frozen = "yes"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", shortID(p.ID), p.Disk, stamp(p.Moment), size(p.Size), size(p.Changed), size(p.Stored), frozen, hooks, strings.Join(p.Tags, " "))
	}
	return table.Flush()
}

func newDiff() *cobra.Command {
	var f vaultFlags
	var asJSON bool
	var bitmap string
	cmd := command{
		use: "diff VAULT POINT POINT", short: "Print where two points of a vault differ",
		long: `Prints the parts of the disk in which two points of VAULT may differ, one a line: offset and length in bytes. Only maps are read and no content. What is not among them is the same. What lies behind the end of the smaller one differs. Points of two disks may be compared. --bitmap writes them to a file instead, one bit for each block of 4 KiB, that of the first block in the lowest bit of the first byte; the last byte is filled up with zeros.

` + pointWords + `.

` + vaultAddress + `.`,
		example: `tidemark diff /backup/vault vdb1@-1d vdb1@latest
tidemark diff --json /backup/vault 3f2c9a10 82be5571
tidemark diff --bitmap changed.map /backup/vault 3f2c9a10 82be5571`,
		exits: append(interruptible(), exitRefused, exitDamaged),
		args:  cobra.ExactArgs(3),
		run: func(cmd *cobra.Command, args []string) error {
			return f.with(cmd.Context(), args[:1], func(v *openVault) error {
				set, bytes, err := v.diff(cmd.Context(), args[1:])
				if err != nil {
					return err
				}
				if bitmap != "" {
					return writeBitmap(bitmap, set, bytes)
				}
				return printSet(cmd.OutOrStdout(), set, asJSON)
			})
		},
	}.build()
	f.add(cmd)
	cmd.Flags().StringVar(&bitmap, "bitmap", "", "write a bitmap to a `file`, and print nothing")
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

// diff returns where two points differ, and the size of the larger one in bytes.
func (v *openVault) diff(ctx context.Context, names []string) (set extent.Set, size int64, err error) {
	var both [2]vault.Point
	for i, name := range names {
		if both[i], _, err = v.Find(ctx, name, time.Now()); err != nil {
			return set, 0, err
		}
		size = max(size, both[i].Size)
	}
	set, err = v.Diff(ctx, both[0], both[1])
	return set, size, err
}

// bitmapBlock is what a bit of a bitmap stands for, in bytes.
const bitmapBlock = 4096

// writeBitmap writes a bit for each block of size bytes that set has some of.
func writeBitmap(path string, set extent.Set, size int64) error {
	return atomicfile.Write(path, atomicfile.Options{Mode: 0o600}, func(f *os.File) error {
		w := bufio.NewWriter(f)
		bits, at := byte(0), int64(0)
		upTo := func(n int64) { // the error of a bufio.Writer stays until Flush
			for ; at < n; at++ {
				w.WriteByte(bits)
				bits = 0
			}
		}
		for _, e := range set.Align(bitmapBlock, size).Extents() {
			for block := e.Off / bitmapBlock; block*bitmapBlock < e.End(); block++ {
				upTo(block / 8)
				bits |= 1 << (block % 8)
			}
		}
		upTo((size + 8*bitmapBlock - 1) / (8 * bitmapBlock))
		return w.Flush()
	})
}

func newForget() *cobra.Command {
	var f vaultFlags
	var dryRun, asJSON bool
	cmd := command{
		use: "forget VAULT POINT...", short: "Remove points from a vault",
		long: `Removes each POINT from VAULT. No other point is any the less for it. What only these points need stays until "tidemark vault prune" removes it. All are looked up first: where one is not there, or is locked, none is removed.

` + pointWords + `.

` + vaultAddress + `.`,
		example: `tidemark forget /backup/vault 3f2c9a10
tidemark forget --dry-run /backup/vault vdb1@-1w`,
		exits: append(interruptible(), exitRefused, exitDamaged),
		args:  cobra.MinimumNArgs(2),
		run: func(cmd *cobra.Command, args []string) error {
			return f.with(cmd.Context(), args[:1], func(v *openVault) error {
				gone, err := v.forget(cmd.Context(), args[1:], dryRun)
				if err != nil {
					return err
				}
				return printForgotten(cmd.OutOrStdout(), gone, dryRun, asJSON)
			})
		},
	}.build()
	f.add(cmd)
	cmd.Flags().BoolVarP(&dryRun, "dry-run", "n", false, "print what would be removed, and remove nothing")
	addJSON(cmd, &asJSON, "one object a line for each point")
	return cmd
}

func (v *openVault) forget(ctx context.Context, names []string, dryRun bool) (gone []pointInfo, err error) {
	var all []vault.Point
	for _, name := range names {
		p, d, err := v.Find(ctx, name, time.Now())
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(all, func(o vault.Point) bool { return o.Name == p.Name }) {
			continue
		}
		until, err := v.locked(ctx, p.Name)
		if err == nil && until != nil {
			err = &store.LockedError{Name: fmt.Sprintf("%v: point %s of %s", v.store, shortID(p.Name.ID.String()), d.Name), Until: *until}
		}
		if err != nil {
			return nil, err
		}
		all, gone = append(all, p), append(gone, infoOf(p, d.Name))
	}
	for _, p := range all {
		if dryRun {
			break
		}
		if err := v.Forget(ctx, p.Name); err != nil {
			return nil, err
		}
	}
	return gone, nil
}

func printForgotten(w io.Writer, all []pointInfo, dryRun, asJSON bool) error {
	if asJSON {
		return printPoints(w, all, true)
	}
	did := "forgot"
	if dryRun {
		did = "would forget"
	}
	for _, p := range all {
		if _, err := fmt.Fprintf(w, "%s %s: %s of %s\n", did, shortID(p.ID), p.Disk, stamp(p.Moment)); err != nil {
			return err
		}
	}
	return nil
}
