package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tidemark/transfer"
	"tidemark/transfer/pairs"
	"tidemark/view"
)

// copyFlags is what the command lines of "mirror" and "backup" have in common.
type copyFlags struct {
	tracker     choice
	view        choice
	maxFreeze   time.Duration
	forceFreeze bool
	preHook     string
	postHook    string
	bwLimit     byteRate // 0 is no limit
	blockSize   byteSize // 0 chooses
	dryRun      bool
	whole       bool
	forcePart   bool
	hookTimeout time.Duration
	showHooks   bool
	every       time.Duration // 0 runs once
	quiet       bool
	asJSON      bool
}

// add adds the flags, but for --whole, which says what becomes of other devices.
func (f *copyFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	addChoice(cmd, &f.tracker, "tracker", "how to find out what changed: auto asks the metadata of a dm-era device or of the pool of thin volumes, uses bpf elsewhere where it can; cow:STORE takes what changed since a live snapshot of SRC was made from its store; scan reads and compares everything", "auto", "bpf", "era", "thin", "cow:STORE", "scan")
	addChoice(cmd, &f.view, "view", "what stands still: auto takes a snapshot in the pool of thin volumes, else freezes where a filesystem is mounted, and takes the view dm where it can when too much is left for that; offline relies on nobody writing; dm takes a snapshot for the time of the run (see \"tidemark snapshot\"), so that users wait for a moment however much is written", "auto", "freeze", "offline", "thin", "dm")
	flags.DurationVar(&f.maxFreeze, "max-freeze", transfer.DefaultMaxFreeze, fmt.Sprintf("longest `time` that filesystems may be frozen in one attempt, of which a run makes %d at most", transfer.MaxAttempts))
	flags.BoolVar(&f.forceFreeze, "force-freeze", false, "freeze for longer than --max-freeze, ten minutes at most, when what is left does not get small enough")
	flags.StringVar(&f.preHook, "pre-hook", "", "shell `command` to run just before each freeze; nothing is frozen if it fails")
	flags.StringVar(&f.postHook, "post-hook", "", "shell `command` to run after each thaw, and whenever the pre-hook was started: also when that or the copy failed")
	flags.DurationVar(&f.hookTimeout, "hook-timeout", view.DefaultHookLimit, "`time` that each hook may take before it is killed with all that it started")
	flags.BoolVar(&f.showHooks, "show-hooks", false, "show what hooks print, after the thaw; of a hook that fails it is shown anyway")
	addSize(cmd, &f.bwLimit, "bwlimit", "how much to read each second while SRC is in use, as 100MB; no limit by default")
	addSize(cmd, &f.blockSize, "block-size", "granularity of a tracking that this run starts, a power of two from 4K on; by default 4K up to a source of 1 TiB, then more")
	flags.BoolVarP(&f.dryRun, "dry-run", "n", false, "print what would be copied, and write nothing")
	flags.BoolVar(&f.forcePart, "force-part", false, "copy SRC although what is on it lies on other devices too, which are not copied: the copy alone may be of no use")
	flags.DurationVar(&f.every, "every", 0, "repeat at this `interval` until stopped, with one line for each run")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print nothing when all is well, for cron; errors as always")
}

// check judges what flags alone cannot.
func (f *copyFlags) check(cmd *cobra.Command) error {
	if f.maxFreeze <= 0 {
		return errors.New("--max-freeze must be above zero")
	}
	if f.maxFreeze > pairs.ForcedFreeze {
		return fmt.Errorf("--max-freeze %v is more than %v, the longest that filesystems are ever frozen", f.maxFreeze, pairs.ForcedFreeze)
	}
	if cmd.Flags().Changed("every") && f.every <= 0 {
		return errors.New("--every must be above zero; without it there is one run")
	}
	if f.hookTimeout <= 0 {
		return errors.New("--hook-timeout must be above zero")
	}
	if f.quiet && (f.asJSON || f.dryRun) {
		return errors.New("--quiet does not go together with --json or --dry-run")
	}
	if f.dryRun && f.every > 0 {
		return errors.New("--dry-run and --every do not go together")
	}
	if f.whole && f.forcePart {
		return errors.New("--whole and --force-part do not go together")
	}
	if b := int64(f.blockSize); b != 0 && (b < 4096 || b&(b-1) != 0) {
		return fmt.Errorf("--block-size %d is not a power of two from 4096 on", b)
	}
	return nil
}

// copying copies sources, once or again and again, and tells of it.
type copying struct {
	f    *copyFlags
	list []pairs.Pair
	// copy does one run, or plans it.
	copy func(ctx context.Context, bar progress) ([]transfer.Report, error)
	// standing says how the targets stand after a run that a signal ended; nil: nothing is to
	// be said.
	standing func() []string
}

// run does what the command line asks for.
func (c *copying) run(cmd *cobra.Command) (err error) {
	defer outliveReaders()()
	var before []string // was told in the run before
	once := func(ctx context.Context, next func() time.Time) error {
		bar := &noting{progress: newProgress(cmd.ErrOrStderr(), c.f.asJSON || c.f.quiet), notes: []string{}, before: before}
		_, err := c.once(ctx, cmd, bar, next)
		before = bar.notes
		return err
	}
	if c.f.every == 0 {
		err = once(cmd.Context(), nil)
	} else {
		err = repeat(cmd.Context(), c.f.every, once, func(err error, next time.Time) {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s tidemark: %v; trying again at %s\n", stamp(time.Now()), err, stamp(next))
		})
	}
	return c.stand(cmd.Context(), err)
}

// once does one run and tells what it did. It takes next as print does.
func (c *copying) once(ctx context.Context, cmd *cobra.Command, bar *noting, next func() time.Time) ([]transfer.Report, error) {
	f := c.f
	reports, err := c.copy(ctx, bar)
	bar.End()
	for _, rep := range reports {
		if hint := rebootHint(rep); hint != "" {
			bar.Note(hint)
		}
	}
	if err != nil && f.quiet {
		for _, note := range bar.notes { // they may say why
			fmt.Fprintln(cmd.ErrOrStderr(), note)
		}
	}
	unread := c.print(ctx, cmd.OutOrStdout(), reports, bar.notes, err, next)
	if errors.Is(unread, syscall.EPIPE) {
		unread = fmt.Errorf("%w: %w", errNoReader, unread)
	}
	if err != nil && f.asJSON {
		err = told{err}
	}
	return reports, errors.Join(err, unread)
}

// errNoReader says that nobody reads what is printed any more.
var errNoReader = errors.New("nobody reads the output")

// outliveReaders has a write fail whose reader is gone, where it would end the program
// at once: there may be something to thaw, to finish, and a hook to run. The function
// that it returns undoes that.
func outliveReaders() func() {
	ignored := make(chan os.Signal, 1) // a signal that is notified, and not ignored, is none of the hooks'
	signal.Notify(ignored, syscall.SIGPIPE)
	return func() { signal.Stop(ignored) }
}

// print tells what a run did. A run that failed before it had anything to report
// still gives programs one object for each pair. What people are told on stderr is
// in each of them. A run that is to be repeated has next, the time of the one after it.
func (c *copying) print(ctx context.Context, w io.Writer, reports []transfer.Report, notes []string, failed error, next func() time.Time) error {
	if !c.f.asJSON {
		if failed != nil || c.f.quiet {
			return nil
		}
		began, end := "", "\n"
		if next != nil {
			began, end = stamp(time.Now())+" ", "; next run at "+stamp(next())+"\n"
		}
		return printReports(w, reports, began, end)
	}
	if len(reports) == 0 && failed != nil {
		for _, p := range c.list {
			reports = append(reports, transfer.Report{Source: p.Source, Target: p.Target, Outcome: failed.Error()})
		}
	}
	for _, rep := range reports {
		rep.Notes = notes
		if rep.Code = rep.Outcome; failed != nil && rep.Outcome != "ok" {
			rep.Code = classify(ctx, failed).name
		}
		if err := printJSON(w, rep); err != nil {
			return err
		}
	}
	return nil
}

// printReports prints a line for each pair, between began and end.
func printReports(w io.Writer, reports []transfer.Report, began, end string) error {
	for _, rep := range reports {
		if rep.Outcome == transfer.Planned {
			if err := printPlan(w, rep); err != nil {
				return err
			}
			continue
		}
		passes := "" // they are why more is read than there is, or than changed
		if rep.Read > rep.Changed && rep.Passes > 1 {
			passes = fmt.Sprintf(" in %d passes", rep.Passes)
		}
		target, did := rep.Target, "wrote "+size(rep.Written)
		if rep.Disk != "" {
			target, did = fmt.Sprintf("%s: %s %s", rep.Target, rep.Disk, shortID(rep.Point)), "stored "+size(rep.Stored)
		}
		_, err := fmt.Fprintf(w, "%s%s -> %s: %s (%s, %s): read %s%s, %s in %v, frozen for %v%s",
			began, rep.Source, target, rep.Mode, rep.Tracker, rep.View,
			size(rep.Read), passes, did, rep.Took.Round(time.Millisecond), rep.Frozen.Round(100*time.Microsecond), end)
		if err != nil {
			return err
		}
	}
	return nil
}

func printPlan(w io.Writer, rep transfer.Report) error {
	why := ""
	if rep.MarkLost != "" {
		why = ": " + rep.MarkLost
	}
	target := rep.Target
	if rep.Disk != "" {
		target += ": " + rep.Disk
	}
	_, err := fmt.Fprintf(w, "%s -> %s: would read %s (%s, %s, %s%s)\n",
		rep.Source, target, size(rep.Read), rep.Mode, rep.Tracker, rep.View, why)
	return err
}
