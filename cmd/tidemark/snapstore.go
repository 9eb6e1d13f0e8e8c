package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"tidemark/format/snapstore"
	"tidemark/transfer/merge"
	"tidemark/transfer/stores"
)

func newSnapstore(g *globals) *cobra.Command {
	return command{
		use: "snapstore", short: "Look into a dm-snapshot's store, apply it, or extract an image",
		long: `A snapshot of device-mapper (the target "snapshot", and LVM's snapshots that are not thin) keeps in its store, the COW device, what is its own. These commands read that store, and bring it to a disk, without device-mapper and on any machine.

A store holds one of two things. When the snapshot was written to, it has what was written, and applying it to the origin commits that. When the origin was written to, it has what was there before, and applying it rolls the origin back to the moment of the snapshot. It is the same operation: afterwards the origin is what the snapshot's device read as.

STORE is a block device or a file; so is ORIGIN.`,
		example: `tidemark snapstore info store.img
tidemark snapstore apply --dry-run store.img disk.img`,
	}.build(newSnapstoreInfo(), newSnapstoreList(), newSnapstoreCheck(), newSnapstoreApply(g), newSnapstoreExtract())
}

// storeInfo is what "snapstore info" tells.
type storeInfo struct {
	Store     string `json:"store"`
	Size      int64  `json:"size"`       // bytes
	ChunkSize int64  `json:"chunk_size"` // bytes
	State     string `json:"state"`
	snapstore.Summary
}

// storeState is the word for how a store is.
func storeState(valid error) string {
	switch {
	case errors.Is(valid, snapstore.ErrOverflowed):
		return "overflowed"
	case valid != nil:
		return "invalid"
	}
	return "valid"
}

func newSnapstoreInfo() *cobra.Command {
	var asJSON bool
	cmd := command{
		use: "info STORE", short: "Tell what a store holds, and whether it is valid",
		long:    `Prints the size of chunks, how many chunks of the origin the store has, how full it is, and whether the kernel has given the snapshot up: "overflowed" when no room is left, else "invalid", after an error or when what was being copied at once did not fit. The store of a live snapshot may be looked at.`,
		example: "tidemark snapstore info /dev/mapper/vg-snap-cow",
		exits:   []exitCode{exitDamaged},
		args:    cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			s, err := stores.Open(args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			info := storeInfo{Store: args[0], Size: s.Size(), ChunkSize: s.ChunkSize(), State: storeState(s.Valid())}
			if info.Summary, err = s.Check(snapstore.CheckOptions{}); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), info)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, chunks of %s, %d exceptions in %d extents, %s of %s used\n",
				info.Store, info.State, size(info.ChunkSize), info.Exceptions, info.Extents, size(info.Used), size(info.Size))
			return err
		},
	}.build()
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

func newSnapstoreCheck() *cobra.Command {
	var origin string
	var asJSON bool
	cmd := command{
		use: "check STORE", short: "Check a store, and report every fault",
		long: `Holds each exception against the rules of the format: its data lies in the store, in a chunk of its own and among the first ones, and no chunk of the origin has two. Every fault is printed with its byte offset in the store.

The format has no checksums: a wrong bit in the data, or in the number of a chunk of the origin, may be found by nobody. With --origin a chunk behind the end of the origin is a fault.`,
		example: `tidemark snapstore check /dev/mapper/vg-snap-cow
tidemark snapstore check --origin /dev/vg/root --json store.img`,
		exits: []exitCode{exitDamaged, exitRefused},
		args:  cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			return checkStore(cmd.OutOrStdout(), args[0], origin, asJSON)
		},
	}.build()
	cmd.Flags().StringVar(&origin, "origin", "", "the `device` or file that the store is to be applied to, for its size")
	addJSON(cmd, &asJSON, `one object: the faults, then "ok" and a summary`)
	return cmd
}

func checkStore(out io.Writer, path, origin string, asJSON bool) error {
	o := snapstore.CheckOptions{}
	if origin != "" {
		var err error
		if o.OriginSize, err = stores.OriginSize(origin); err != nil {
			return err
		}
	}
	s, err := stores.Open(path)
	if err != nil {
		return err
	}
	defer s.Close()
	w := bufio.NewWriter(out)
	list := jsonList{w: w, head: `{"faults":[`}
	faults := 0
	var failed error
	o.Faults = func(f *snapstore.Fault) {
		faults++
		switch {
		case failed != nil:
		case asJSON:
			failed = list.addValue(f)
		default:
			_, failed = fmt.Fprintf(w, "%s at byte %d: %s\n", f.Object, f.Offset, f.Problem)
		}
	}
	sum, err := s.Check(o)
	if err != nil {
		return errors.Join(err, w.Flush())
	}
	if failed == nil && asJSON {
		failed = list.endSummary(faults == 0, sum)
	} else if failed == nil {
		_, failed = fmt.Fprintf(w, "%s: %d exceptions, %s\n", path, sum.Exceptions, counted(faults))
	}
	if err := errors.Join(failed, w.Flush()); err != nil {
		return err
	}
	if faults > 0 {
		return told{hinted{fmt.Errorf("%s: %w: %s", path, snapstore.ErrDamaged, counted(faults)), ""}}
	}
	return s.Valid()
}

// applyFlags is the command line of "snapstore apply".
type applyFlags struct {
	volumes volumePair
	journal bool
	direct  bool
	undo    string
	dryRun  bool
	asJSON  bool
}

func newSnapstoreApply(g *globals) *cobra.Command {
	f := &applyFlags{}
	cmd := command{
		use: "apply [STORE ORIGIN]", short: "Commit a snapshot to its origin, or roll the origin back",
		long: `Writes each chunk that STORE has to its place in ORIGIN. When the snapshot was written to, that commits what was written; when the origin was written to, it rolls ORIGIN back to the moment of the snapshot. Neither may be in use: a mounted ORIGIN, one that devices are made of, and the store of a live snapshot are refused, and what holds them is named.

All of STORE is read and checked before the first byte is written. One that is invalid or overflowed is refused: chunks are missing in it. So is one that does not fit ORIGIN.

ORIGIN is written in place. A run that is cut off leaves it neither old nor new; run the same command again, and it is finished: STORE is not changed, and what was written already is written once more. With --journal all goes through a journal beside ORIGIN (for a device, in the state folder), as large as what STORE has, and ORIGIN is old or new, whatever crashes. With --undo what is overwritten is kept in a new file, a store as well: applied in its turn it brings ORIGIN back.

With --lv and --snapshot LVM's volume and a snapshot of it are taken out of use, the store is applied, and both are activated again. The volume must not be mounted. The snapshot stays, and reads as the volume does: applied once more it rolls back to the same again, and "lvremove" removes it. Where a run was cut off the volume is not activated by itself, nor when the machine boots, until the same command has finished it. Refused are thin snapshots, volumes that have another snapshot or that LVM merges, and those that are not linear or striped: use "lvconvert --merge" for them.`,
		example: `# What would be written, and how much of it is there already?
tidemark snapstore apply --dry-run store.img disk.img
tidemark snapstore apply --undo before.img store.img disk.img
# a volume of LVM
tidemark snapstore apply --lv vg/root --snapshot vg/snap`,
		exits: append(interruptible(), exitRefused, exitBusy, exitDamaged),
		args:  f.checkArgs,
		run: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd.Context(), args, g, stdio{cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()})
		},
	}.build()
	flags := cmd.Flags()
	flags.StringVar(&f.volumes.lv, "lv", "", "the `volume` of LVM to apply to, as vg/lv, in the place of ORIGIN")
	flags.StringVar(&f.volumes.snapshot, "snapshot", "", "the snapshot of that `volume`, as vg/snap, in the place of STORE")
	flags.BoolVar(&f.journal, "journal", false, "go through a journal, so that ORIGIN is old or new, whatever crashes")
	flags.BoolVar(&f.direct, "direct", false, "write past the page cache, as is done without it to a device where extents are long")
	flags.StringVar(&f.undo, "undo", "", "keep what is overwritten in this new `file`, as a store")
	flags.BoolVarP(&f.dryRun, "dry-run", "n", false, "read and compare, and write nothing")
	addJSON(cmd, &f.asJSON, "one object")
	return cmd
}

func (f *applyFlags) checkArgs(cmd *cobra.Command, args []string) error {
	switch v := f.volumes; {
	case (v.lv == "") != (v.snapshot == ""):
		return errors.New("--lv and --snapshot go together")
	case v.lv != "" && len(args) > 0:
		return errors.New("give either STORE and ORIGIN or --lv and --snapshot, not both")
	case v.lv != "" && f.journal:
		return errors.New("--journal does not go together with --lv: a run that is cut off is finished by the next one")
	case v.lv == "" && len(args) < 2:
		return errors.New("STORE and ORIGIN are missing, or --lv and --snapshot")
	case v.lv == "":
		return cobra.ExactArgs(2)(cmd, args)
	case f.journal && f.direct:
		return errors.New("--journal and --direct do not go together: a journal goes past the page cache where it can")
	}
	return nil
}

func (f *applyFlags) run(ctx context.Context, args []string, g *globals, std stdio) error {
	bar := newProgress(std.errs, f.asJSON)
	o := stores.Options{
		StateDir: g.stateDir, Journal: f.journal, Direct: f.direct, Undo: f.undo,
		Progress: phases(bar), Note: bar.Note,
	}
	var rep merge.Report
	one := func(store, origin string) (err error) {
		rep, err = applyStore(ctx, store, origin, f.dryRun, o)
		return err
	}
	var err error
	switch {
	case f.volumes.lv == "":
		err = one(args[0], args[1])
	case f.dryRun:
		o.Live = true
		err = f.volumes.look(ctx, one)
	default:
		err = f.volumes.apply(ctx, func(store, origin string, begin func() error) error {
			o.Begin = begin
			return one(store, origin)
		})
	}
	bar.End()
	if err != nil {
		return err
	}
	if f.asJSON {
		return printJSON(std.out, rep)
	}
	return printApplied(std.out, rep, f.dryRun)
}

func applyStore(ctx context.Context, store, origin string, dry bool, o stores.Options) (rep merge.Report, err error) {
	s, err := stores.Open(store)
	if err != nil {
		return rep, err
	}
	defer s.Close()
	if dry {
		return s.Plan(ctx, origin, o)
	}
	rep, err = s.Apply(ctx, origin, o)
	if errors.Is(err, stores.ErrCutOff) || errors.Is(err, merge.ErrPending) {
		err = hinted{err, hintOf(err)} // it is told after a signal, too
	}
	return rep, err
}

func printApplied(w io.Writer, rep merge.Report, dry bool) error {
	text := fmt.Sprintf("wrote %s in %d extents", size(rep.Bytes), rep.Extents)
	if dry {
		text = fmt.Sprintf("would write %s in %d extents; %s of it are there already", size(rep.Bytes), rep.Extents, size(rep.Equal))
	}
	_, err := fmt.Fprintln(w, text)
	return err
}

// phases shows phases that are told by name.
func phases(bar progress) func(phase string, done, total int64) {
	shown := ""
	return func(phase string, done, total int64) {
		if phase != shown {
			bar.Begin(phase, total)
			shown = phase
		}
		bar.Done(done)
	}
}

func newSnapstoreExtract() *cobra.Command {
	var asJSON bool
	cmd := command{
		use: "extract STORE ORIGIN IMAGE", short: "Make an image of what the snapshot's device would read as",
		long:    `Writes a new sparse file IMAGE with what ORIGIN would be if STORE were applied to it. STORE and ORIGIN are only read; ORIGIN must not be mounted read-write, nor the snapshot live, since they would change meanwhile.`,
		example: "tidemark snapstore extract store.img disk.img snapshot.img",
		exits:   append(interruptible(), exitRefused, exitDamaged),
		args:    cobra.ExactArgs(3),
		run: func(cmd *cobra.Command, args []string) error {
			bar := newProgress(cmd.ErrOrStderr(), asJSON)
			s, err := stores.Open(args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			rep, err := s.Extract(cmd.Context(), args[1], args[2], stores.Options{Progress: phases(bar)})
			bar.End()
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), rep)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s of it from %s, in %d extents\n", args[2], size(rep.Bytes), args[0], rep.Extents)
			return err
		},
	}.build()
	addJSON(cmd, &asJSON, "one object")
	return cmd
}
