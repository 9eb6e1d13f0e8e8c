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

	"tidemark/format/redo"
	"tidemark/transfer/apply"
	"tidemark/transfer/streams"
	"tidemark/transfer/target"
	"tidemark/transfer/transaction"
)

// eraApply is the command line of "era apply".
type eraApply struct {
	input    string // path, "" and "-" for standard input
	size     byteSize
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
			return a.run(cmd.Context(), args[0], g.stateDir, stdio{cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()})
		},
	}.build()
	flags := cmd.Flags()
	flags.StringVar(&a.input, "input", "", "`file` with the stream, instead of standard input")
	addSize(cmd, &a.size, "size", "`size` that an image shall have, if that is more than it has; nothing may reach behind it")
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
	case a.recovers() && (a.input != "" || a.dryRun || a.grow || a.size > 0):
		return errors.New("--finish and --discard read no stream: leave out what is about one")
	}
	return cobra.ExactArgs(1)(cmd, args)
}

// recovers says that there is no stream, only what waits since a crash.
func (a *eraApply) recovers() bool { return a.finish || a.discard }

// stdio are the standard streams of a program.
type stdio struct {
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

func (a *eraApply) run(ctx context.Context, path, stateDir string, std stdio) error {
	in, closeInput, err := a.open(std.in)
	if err != nil {
		return err
	}
	defer closeInput()
	if place, err := target.Find(path, stateDir); err == nil && place.Device && a.size > 0 {
		return usagef("--size is for image files, and %s is a device", place.Path)
	}
	widen(in)
	done := applied{Target: path, DryRun: a.dryRun}
	o := a.options(stateDir, in, newProgress(std.errs, !a.progress))
	o.Note = func(text string) {
		done.Recovered = text
		fmt.Fprintf(std.errs, "tidemark: note: %s: %s\n", path, text)
	}
	switch {
	case a.recovers():
		done.Report, err = streams.Recover(ctx, path, o.Options)
	case a.dryRun:
		done.Report, err = streams.Check(ctx, path, in, o.Options)
	default:
		done.Report, err = streams.Apply(ctx, path, in, o.Options)
	}
	o.bar.End()
	if err != nil {
		return fmt.Errorf("era: %s: %w", path, a.advise(err, path, stateDir))
	}
	if a.asJSON {
		return printJSON(std.out, done)
	}
	return nil
}

// open returns the stream and what closes it.
func (a *eraApply) open(stdin io.Reader) (io.Reader, func(), error) {
	if a.recovers() {
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

// applyOptions are those of package streams with the bar that they draw.
type applyOptions struct {
	streams.Options
	bar progress
}

func (a *eraApply) options(stateDir string, in io.Reader, bar progress) applyOptions {
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
	return applyOptions{bar: bar, Options: streams.Options{StateDir: stateDir, Mode: a.mode, Options: apply.Options{
		Waiting: waiting, Grow: a.grow, Size: int64(a.size),
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
	}}}
}

// advise says what to do next where that depends on the folder of the target.
func (a *eraApply) advise(err error, path, stateDir string) error {
	place, findErr := target.Find(path, stateDir)
	switch {
	case findErr != nil:
	case errors.Is(err, target.ErrMirror):
		return hinted{err, fmt.Sprintf(`use "tidemark mirror", or remove %s to give the mirror up`, place.Folder)}
	case errors.Is(err, redo.ErrDamaged), errors.Is(err, redo.ErrNotOurs):
		return hinted{err, fmt.Sprintf(`what waits in %[2]s cannot be used, and %[1]s may be between old and new: copy all of it anew; "tidemark era apply --discard %[1]s" forgets what waits`, place.Path, place.Folder)}
	case errors.Is(err, apply.ErrPending):
		return hinted{err, fmt.Sprintf(`if nobody but the interrupted run has written to %[1]s, "tidemark era apply --finish %[1]s" brings to it what waits in %[2]s; if it was replaced or restored since, "tidemark era apply --discard %[1]s" forgets that`, place.Path, place.Folder)}
	case errors.Is(err, unix.ENOSPC):
		return hinted{err, fmt.Sprintf("nothing was changed; make room for the target, and in %s for what has changed", place.Folder)}
	}
	return err
}
