package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/format/redo"
	"tidemark/linux/mounts"
	"tidemark/transfer/apply"
	"tidemark/transfer/pairs"
	"tidemark/transfer/transaction"
)

// eraApply is the command line of "era apply".
type eraApply struct {
	input    string // path, "" and "-" for standard input
	size     diskSize
	grow     bool
	dryRun   bool
	progress bool
	asJSON   bool
	finish   bool
	discard  bool
	mode     fs.FileMode // of a new image
}

func newEraApply(g *globals) *cobra.Command {
	a := &eraApply{mode: 0o600}
	cmd := command{
		use: "apply TARGET", short: "Bring a stream of changed blocks to an image or device",
		long: `Reads the stream of "tidemark era copy" or era_copy from standard input and writes it to TARGET, an image file or a block device. An image that does not exist is made: sparse, and as large as the stream reaches, or as --size says.

TARGET is old or new, never between. Nothing is written to it before the whole stream was read and found to be sound: the data waits in a journal, in the folder TARGET.tidemark or, for a device, in the state folder, and needs as much room there as the changes have, zeros left out. Then the journal is committed, brought to TARGET and removed. On XFS and Btrfs an image shares blocks with the journal, elsewhere everything is written twice. A new image appears when it is complete, and needs no journal.

A crash before the commit leaves TARGET as it was. After a later one TARGET may be between old and new, and the journal has all that it lacks. When nobody has written to TARGET since the commit the next run finishes the change; otherwise it refuses to touch TARGET, because nothing tells what the interrupted run wrote from what somebody else did. Then "era apply --finish TARGET" brings the journal to TARGET: right, when TARGET is the one that was being changed, and nobody else has written to it. When it was replaced or restored since, "era apply --discard TARGET" removes the journal and leaves TARGET as it is. Both read no stream.

Refused, before anything is written: a stream that is cut off inside a record, damaged, out of order or overlapping; records behind the end of TARGET, except in an image with --grow or --size; a TARGET that is mounted or in use, and one that "tidemark mirror" keeps, which would no longer be a mirror.

The stream has no end mark and no checksums. One that was cut off between two records, or in which bits flipped, looks sound, and an empty one says that nothing changed: see that both ends of the pipe succeed ("set -o pipefail").`,
		example: `set -o pipefail; zcat changes.gz | tidemark era apply /backup/data.img
# Is the stream sound, and does it fit?
tidemark era apply --dry-run --input changes.era /backup/data.img
# after a power cut
tidemark era apply --finish /backup/data.img`,
		exits: append(interruptible(), exitRefused, exitBusy, exitDamaged),
		args:  a.args,
		run: func(cmd *cobra.Command, args []string) error {
			return a.run(cmd.Context(), args[0], g.stateDir, streams{cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()})
		},
	}.build()
	flags := cmd.Flags()
	flags.StringVar(&a.input, "input", "", "`file` with the stream, instead of standard input")
	flags.Var(&a.size, "size", "`size` that an image shall have, if that is more than it has; nothing may reach behind it")
	flags.BoolVar(&a.grow, "grow", false, "let an image become larger, as far as the stream reaches")
	flags.BoolVarP(&a.dryRun, "dry-run", "n", false, "read the stream to its end and check it, and write nothing")
	flags.BoolVar(&a.finish, "finish", false, "read no stream; bring to TARGET the change that waits for it since a crash")
	flags.BoolVar(&a.discard, "discard", false, "read no stream; forget the change that waits for TARGET, which stays as it is")
	flags.BoolVar(&a.progress, "progress", false, "show how far it is: a bar on a terminal, lines elsewhere")
	addJSON(cmd, &a.asJSON, "one object")
	return cmd
}

func (a *eraApply) args(cmd *cobra.Command, args []string) error {
	switch {
	case a.finish && a.discard:
		return errors.New("--finish and --discard exclude each other")
	case a.settles() && (a.input != "" || a.dryRun || a.grow || a.size.byteSize > 0):
		return errors.New("--finish and --discard read no stream: leave out what is about one")
	}
	return cobra.ExactArgs(1)(cmd, args)
}

// settles says that there is no stream, only what waits since a crash.
func (a *eraApply) settles() bool { return a.finish || a.discard }

// streams are those of a program.
type streams struct {
	in        io.Reader
	out, errs io.Writer
}

// applied is what "era apply" says.
type applied struct {
	Target string `json:"target"`
	apply.Report
	Recovered string `json:"recovered,omitempty"`
	DryRun    bool   `json:"dry_run,omitempty"`
}

func (a *eraApply) run(ctx context.Context, path, stateDir string, std streams) error {
	in, closeInput, err := a.open(std.in)
	if err != nil {
		return err
	}
	defer closeInput()
	place, err := pairs.Find(path, stateDir)
	if err != nil {
		return fmt.Errorf("era: %w", err)
	}
	if err := a.refuse(place, in, stateDir); err != nil {
		return err
	}
	widen(in)
	done := applied{Target: path, DryRun: a.dryRun}
	o := a.options(place, in, newProgress(std.errs, !a.progress))
	note := func(text string) {
		done.Recovered = text
		fmt.Fprintf(std.errs, "tidemark: note: %s: %s\n", path, text)
	}
	switch {
	case a.discard && !place.Exists:
		err = discardFor(place, note)
	case a.finish && !place.Exists:
		err = fmt.Errorf("%w", fs.ErrNotExist)
	case a.dryRun:
		done.Report, err = check(ctx, place, in, o.Options)
	case !place.Exists:
		done.Report, err = a.create(ctx, place, in, o.Options)
	default:
		done.Report, err = update(ctx, place, in, o.Options, note)
	}
	o.bar.End()
	if err != nil {
		return fmt.Errorf("era: %s: %w", path, advise(err, place))
	}
	if a.asJSON {
		return printJSON(std.out, done)
	}
	return nil
}

// open returns the stream and what closes it.
func (a *eraApply) open(stdin io.Reader) (io.Reader, func(), error) {
	if a.settles() {
		return strings.NewReader(""), func() {}, nil
	}
	if a.input == "" || a.input == "-" {
		if isTerminal(stdin) {
			return nil, nil, usagef("standard input is a terminal: give it a stream, or use --input")
		}
		return stdin, func() {}, nil
	}
	f, err := os.Open(a.input)
	if err != nil {
		return nil, nil, fmt.Errorf("era: stream: %w", err)
	}
	return f, func() { _ = f.Close() }, nil
}

// refuse protects who uses the target, mirrors, and an input that is the target.
func (a *eraApply) refuse(place pairs.Place, in io.Reader, stateDir string) error {
	if place.Device && a.size.byteSize > 0 {
		return usagef("--size is for image files, and %s is a device", place.Path)
	}
	switch _, err := pairs.Status(place.Path, stateDir); {
	case err == nil:
		return hinted{
			fmt.Errorf("era: %s: %w: it is a mirror, and would no longer be one", place.Path, errOutput),
			fmt.Sprintf(`use "tidemark mirror", or remove %s to give the mirror up`, place.Folder),
		}
	case !errors.Is(err, pairs.ErrNoMirror):
		return fmt.Errorf("era: %w", err)
	}
	if !place.Exists {
		return nil
	}
	if f, ok := in.(*os.File); ok {
		if same, err := sameFile(place.Path, f); err != nil || same {
			return errors.Join(err, fmt.Errorf("era: %s: %w: it is the stream", place.Path, errOutput))
		}
	}
	table, err := mounts.Read()
	if err != nil {
		return fmt.Errorf("era: %w", err)
	}
	use, err := table.UseOf(place.Path)
	if err != nil {
		return fmt.Errorf("era: %w", err)
	}
	if use.InUse() {
		return fmt.Errorf("era: %s: %w: it is in use (%s)", place.Path, errOutput, use)
	}
	return nil
}

// applyOptions are those of package apply with the bar that they draw.
type applyOptions struct {
	apply.Options
	bar progress
}

func (a *eraApply) options(place pairs.Place, in io.Reader, bar progress) applyOptions {
	streamSize := int64(-1)
	if f, ok := in.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			streamSize = info.Size()
		}
	}
	waiting := transaction.FinishUntouched
	switch {
	case a.finish:
		waiting = transaction.Finish
	case a.discard:
		waiting = transaction.Discard
	}
	phase := apply.Phase("")
	return applyOptions{bar: bar, Options: apply.Options{
		Waiting: waiting, Grow: a.grow && !place.Device, Size: int64(a.size.byteSize),
		Progress: func(p apply.Phase, done, total int64) {
			if total < 0 {
				total = streamSize
			}
			if p != phase {
				bar.Begin(string(p), total)
				phase = p
			}
			bar.Done(done)
		},
	}}
}

// advise says what to do next where that depends on the folder.
func advise(err error, place pairs.Place) error {
	switch {
	case errors.Is(err, redo.ErrDamaged), errors.Is(err, redo.ErrNotOurs):
		return hinted{err, fmt.Sprintf(`what waits in %[2]s cannot be used, and %[1]s may be between old and new: copy all of it anew; "tidemark era apply --discard %[1]s" forgets what waits`, place.Path, place.Folder)}
	case errors.Is(err, apply.ErrPending):
		return hinted{err, fmt.Sprintf(`if nobody but the interrupted run has written to %[1]s, "tidemark era apply --finish %[1]s" brings to it what waits in %[2]s; if it was replaced or restored since, "tidemark era apply --discard %[1]s" forgets that`, place.Path, place.Folder)}
	case errors.Is(err, unix.ENOSPC):
		return hinted{err, fmt.Sprintf("nothing was changed; make room for the target, and in %s for what has changed", place.Folder)}
	}
	return err
}

// check reads the stream for nothing else than its faults.
func check(ctx context.Context, place pairs.Place, in io.Reader, o apply.Options) (apply.Report, error) {
	if !place.Exists {
		return apply.Check(ctx, in, -1, o)
	}
	d, err := block.Open(place.Path, block.Options{})
	if err != nil {
		return apply.Report{}, err
	}
	defer d.Close()
	return apply.Check(ctx, in, d.Size(), mayGrow(d, o))
}

// mayGrow lets an image grow that is empty: somebody has made it to be filled.
func mayGrow(d *block.Device, o apply.Options) apply.Options {
	o.Grow = o.Grow || !d.IsDevice() && d.Size() == 0
	return o
}

func (a *eraApply) create(ctx context.Context, place pairs.Place, in io.Reader, o apply.Options) (rep apply.Report, err error) {
	dir, err := apply.OpenDir(place.Folder, place.Path, a.mode)
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	return apply.Create(ctx, dir, in, o)
}

// discardFor forgets what waits for a target that is gone.
func discardFor(place pairs.Place, note func(string)) (err error) {
	dir, err := apply.OpenDir(place.Folder, place.Path, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	done, err := transaction.Forget(dir)
	if done {
		note("discarded a change that was committed")
	}
	return err
}

// update changes a target that exists. It tells note what a crash had left to do.
func update(ctx context.Context, place pairs.Place, in io.Reader, o apply.Options, note func(string)) (rep apply.Report, err error) {
	d, err := block.Open(place.Path, block.Options{Write: true, Exclusive: true})
	if errors.Is(err, unix.EBUSY) {
		return rep, fmt.Errorf("%w: it is in use", errOutput)
	}
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	dir, err := apply.OpenDir(place.Folder, place.Path, 0o600)
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	store, err := apply.Open(transaction.Disk{Device: d}, dir, o)
	if err != nil {
		return rep, err
	}
	if text := store.Recovered(); text != "" {
		note(text)
	}
	return store.Apply(ctx, in, mayGrow(d, o))
}
