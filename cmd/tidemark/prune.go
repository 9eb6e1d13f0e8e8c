package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	format "tidemark/format/vault"
	"tidemark/vault"
)

// pruneFlags is the command line of "prune".
type pruneFlags struct {
	vaultFlags
	keep   vault.Retention
	disks  []string
	dryRun bool
	now    bool
	asJSON bool
}

// newPrune makes "prune", and with another name the same command in the group "vault".
func newPrune() *cobra.Command {
	f := &pruneFlags{}
	cmd := command{
		use: "prune [VAULT]", short: "Forget old points of a vault, and free what no point needs",
		long: `First forgets the points of each disk that none of the --keep rules keeps; without such a rule none is forgotten. Hours, days, weeks (from Monday), months and years are those of this machine's time zone. Of each of the newest ones that have a point the last point is kept. A rule that would leave a disk without any point is refused, and nothing is forgotten.

Then frees what no point needs. What can go is declared dead now, and removed by the first prune a day or more later: a backup that is under way, on any machine, may still come to need it. So a vault that is pruned each day shrinks a day later. While a backup runs nothing is declared dead, and what is dead already is removed. A pack that is mostly not needed is written anew without that, and the old one goes the same way.

With --now all that is not needed is removed at once. That is refused while anybody else is at work in the vault, and nobody can begin until it has ended.

In a vault with a lock what is locked stays, points and packs; it is told how much, and until when. A later prune removes it.

"tidemark vault prune" is another name of this command.

` + vaultAddress + `.`,
		example: `tidemark prune --keep-last 3 --keep-daily 7 --keep-weekly 5 --keep-monthly 12 /backup/vault
# What would go?
tidemark prune --keep-within 2w --keep-tag release --dry-run /backup/vault
tidemark prune --disk vdb1 --keep-last 1 /backup/vault
# free what forgotten points leave, at once
tidemark prune --now /backup/vault`,
		exits: append(interruptible(), exitRefused, exitBusy, exitDamaged),
		args:  cobra.MaximumNArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			return f.with(cmd.Context(), args, func(v *openVault) error {
				return v.prune(cmd.Context(), cmd.OutOrStdout(), f)
			})
		},
	}.build()
	f.add(cmd)
	for _, rule := range []struct {
		name string
		n    *int
		what string
	}{
		{"last", &f.keep.Last, "the last `N` points"},
		{"hourly", &f.keep.Hourly, "the last point of each of `N` hours"},
		{"daily", &f.keep.Daily, "the last point of each of `N` days"},
		{"weekly", &f.keep.Weekly, "the last point of each of `N` weeks"},
		{"monthly", &f.keep.Monthly, "the last point of each of `N` months"},
		{"yearly", &f.keep.Yearly, "the last point of each of `N` years"},
	} {
		cmd.Flags().IntVar(rule.n, "keep-"+rule.name, 0, "keep "+rule.what)
	}
	cmd.Flags().Var(&f.keep.Within, "keep-within", "keep all points of that `time` before the newest one: 36h, 10d, 3w, 6m, 2y or 1y6m")
	cmd.Flags().StringArrayVar(&f.keep.Tags, "keep-tag", nil, "keep the points with that `tag`; may be given several times")
	cmd.Flags().StringArrayVar(&f.disks, "disk", nil, "forget points of the disk of that `name` alone; may be given several times")
	cmd.Flags().BoolVarP(&f.dryRun, "dry-run", "n", false, "print what would be forgotten and freed, and change nothing")
	cmd.Flags().BoolVar(&f.now, "now", false, "remove what is not needed at once")
	addJSON(cmd, &f.asJSON, "one object a line for each point, with what keeps it, and one in the end")
	return cmd
}

func (f *pruneFlags) check() error {
	k := f.keep
	if slices.Min([]int{k.Last, k.Hourly, k.Daily, k.Weekly, k.Monthly, k.Yearly}) < 0 {
		return usagef("a --keep rule with a number below zero")
	}
	if len(f.disks) > 0 && k.None() {
		return usagef("--disk says of which disks points are forgotten: give a --keep rule, too")
	}
	return nil
}

// judged is what becomes of a point.
type judged struct {
	pointInfo
	Keep    bool       `json:"keep"`
	Reasons []string   `json:"reasons"`
	Locked  *time.Time `json:"locked_until,omitempty"` // of one that is not kept, and stays: nobody can remove it before
}

// prune forgets what the rules do not keep, and frees what is not needed.
func (v *openVault) prune(ctx context.Context, w io.Writer, f *pruneFlags) error {
	gone, err := v.retain(ctx, w, f)
	if err != nil {
		return err
	}
	for _, name := range gone {
		if f.dryRun {
			break
		}
		if err := v.Forget(ctx, name); err != nil {
			return err
		}
	}
	o := vault.PruneOptions{Now: f.now, DryRun: f.dryRun}
	if f.dryRun {
		o.Without = gone
	}
	did, err := v.Prune(ctx, o)
	if err != nil {
		return err
	}
	return printPruned(w, did, f)
}

// retain returns the points that are not kept, and tells of each.
func (v *openVault) retain(ctx context.Context, w io.Writer, f *pruneFlags) (gone []format.PointName, err error) {
	if f.keep.None() {
		return nil, nil
	}
	disks, err := v.Disks(ctx)
	if err != nil {
		return nil, err
	}
	names := map[format.ID]string{}
	for _, d := range disks {
		names[d.ID] = d.Name
	}
	for _, name := range f.disks {
		if !slices.ContainsFunc(disks, func(d vault.Disk) bool { return d.Name == name }) {
			return nil, fmt.Errorf("%v: %w: there is no disk %q", v.store, vault.ErrNoPoint, name)
		}
	}
	points, err := v.Points(ctx, format.ID{})
	if err != nil {
		return nil, err
	}
	if len(f.disks) > 0 {
		points = slices.DeleteFunc(points, func(p vault.Point) bool { return !slices.Contains(f.disks, names[p.Name.Disk]) })
	}
	kept, err := f.keep.Keep(points, time.Now())
	if err != nil {
		return nil, err
	}
	for _, p := range points {
		var locked *time.Time
		if kept[p.Name] == nil {
			if locked, err = v.locked(ctx, p.Name); err != nil {
				return nil, err
			}
			if locked == nil {
				gone = append(gone, p.Name)
			}
		}
		name := names[p.Name.Disk]
		if name == "" {
			name = shortID(p.Name.Disk.String()) // its object is lost
		}
		if err := printJudged(w, judged{infoOf(p, name), kept[p.Name] != nil, append([]string{}, kept[p.Name]...), locked}, f); err != nil {
			return nil, err
		}
	}
	return gone, nil
}

// locked returns until when nobody can remove a point, nil where anybody can.
func (v *openVault) locked(ctx context.Context, name format.PointName) (*time.Time, error) {
	until, err := v.LockedUntil(ctx, name)
	if err != nil || !until.After(time.Now()) {
		return nil, err
	}
	return &until, nil
}

func printJudged(w io.Writer, j judged, f *pruneFlags) error {
	if f.asJSON {
		return printJSON(w, j)
	}
	if j.Keep && !f.dryRun {
		return nil
	}
	what := "forgets"
	switch {
	case j.Keep:
		what = "would keep (" + strings.Join(j.Reasons, ", ") + ")"
	case j.Locked != nil:
		what = "locked until " + stamp(*j.Locked) + ", stays:"
	case f.dryRun:
		what = "would forget"
	}
	_, err := fmt.Fprintf(w, "%s %s: %s of %s\n", what, shortID(j.ID), j.Disk, stamp(j.Moment))
	return err
}

func printPruned(w io.Writer, did vault.Pruned, f *pruneFlags) error {
	if f.asJSON {
		return printJSON(w, did)
	}
	freed, wrote := "freed", "wrote"
	if f.dryRun {
		freed, wrote = "would free", "would write"
	}
	text := fmt.Sprintf("%d points need %d packs; %s %s of %d packs", did.Points, did.Needed, freed, size(did.Freed), did.Removed)
	if did.Rewritten > 0 {
		text += fmt.Sprintf("; %s %s anew, of %d packs", wrote, size(did.Written), did.Rewritten)
	}
	if did.Locked > 0 {
		text += fmt.Sprintf("; %s in %d packs are locked, the last until %s: a later prune removes them", size(did.LockedBytes), did.Locked, stamp(*did.LockedUntil))
	}
	if did.Later > 0 {
		text += fmt.Sprintf("; %s go with a prune a day later", size(did.Later))
	}
	if did.Writers > 0 {
		text += fmt.Sprintf("; %d backups are under way, so nothing new was given up", did.Writers)
	}
	if did.Unused > 0 {
		text += fmt.Sprintf("; %s are not needed, in packs that mostly are", size(did.Unused))
	}
	_, err := fmt.Fprintln(w, text)
	return err
}
