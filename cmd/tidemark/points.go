package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	format "tidemark/format/vault"
	"tidemark/vault"
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
		Frozen: p.Frozen, Tags: append([]string{}, p.Tags...), Run: p.Run, Host: p.Host, Tracker: p.Tracker, View: p.View, Mark: p.Mark,
	}
}

func newPoints() *cobra.Command {
	var f vaultFlags
	var disk string
	var asJSON bool
	cmd := command{
		use: "points [VAULT]", short: "List the points of a vault",
		long: `Lists the points of a vault, the oldest first: id, disk, the moment of its content, size of the disk, how much of it had changed, how much the vault stored for it, whether filesystems were frozen at that moment, and tags.

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
	fmt.Fprintln(table, "POINT\tDISK\tOF\tSIZE\tCHANGED\tSTORED\tFROZEN\tTAGS")
	for _, p := range all {
		frozen := "no"
		if p.Frozen {
			frozen = "yes"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", shortID(p.ID), p.Disk, stamp(p.Moment), size(p.Size), size(p.Changed), size(p.Stored), frozen, strings.Join(p.Tags, " "))
	}
	return table.Flush()
}

func newDiff() *cobra.Command {
	var f vaultFlags
	var asJSON bool
	cmd := command{
		use: "diff VAULT POINT POINT", short: "Print where two points of a vault differ",
		long: `Prints the parts of the disk in which two points of VAULT may differ, one a line: offset and length in bytes. Only maps are read and no content. What is not among them is the same. What lies behind the end of the smaller one differs. Points of two disks may be compared.

` + pointWords + `.

` + vaultAddress + `.`,
		example: `tidemark diff /backup/vault vdb1@-1d vdb1@latest
tidemark diff --json /backup/vault 3f2c9a10 82be5571`,
		exits: append(interruptible(), exitRefused, exitDamaged),
		args:  cobra.ExactArgs(3),
		run: func(cmd *cobra.Command, args []string) error {
			return f.with(cmd.Context(), args[:1], func(v *openVault) error {
				return v.diff(cmd.Context(), cmd.OutOrStdout(), args[1:], asJSON)
			})
		},
	}.build()
	f.add(cmd)
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

func (v *openVault) diff(ctx context.Context, w io.Writer, names []string, asJSON bool) error {
	var both [2]vault.Point
	var err error
	for i, name := range names {
		if both[i], _, err = v.Find(ctx, name, time.Now()); err != nil {
			return err
		}
	}
	set, err := v.Diff(ctx, both[0], both[1])
	if err != nil {
		return err
	}
	return printSet(w, set, asJSON)
}

func newForget() *cobra.Command {
	var f vaultFlags
	var dryRun, asJSON bool
	cmd := command{
		use: "forget VAULT POINT...", short: "Remove points from a vault",
		long: `Removes each POINT from VAULT. No other point is any the less for it. What only these points need stays until "tidemark vault prune" removes it. All are looked up first: where one is not there, none is removed.

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
