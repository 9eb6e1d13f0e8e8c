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
)

// mirrorFlags is the command line of "mirror".
type mirrorFlags struct {
	pairs       []string // SRC=DST
	tracker     choice
	view        choice
	maxFreeze   time.Duration
	forceFreeze bool
	preHook     string
	postHook    string
	bwLimit     byteSize // bytes a second; 0 is no limit
	blockSize   byteSize // 0 chooses
	dryRun      bool
	force       bool
	adopt       bool
	whole       bool
	forcePart   bool
	every       time.Duration // 0 runs once
	asJSON      bool
}

func newMirror(g *globals) *cobra.Command {
	f := &mirrorFlags{}
	cmd := command{
		use: "mirror SRC DST", short: "Bring a copy of a live block device up to date",
		long: `Copies SRC, a block device or an image file, to DST, a raw image file (made when missing) or a block device. The first run reads all of SRC and writes what is not zeros; later runs read and write only what changed since. When a run ends, DST equals what SRC was at one instant.

While SRC is in use, what changed is copied again and again until little is left. Then every filesystem on SRC is frozen, the rest is read, and the filesystems are thawed; a watchdog thaws them even if tidemark is killed. DST is old or new, never between: a run that is interrupted leaves it as it was, and the next run goes on or finishes it.

What is known of an image file is kept beside it, in the folder DST.tidemark; of a device, in the state folder (--state-dir). A DST on a filesystem of SRC is refused: each copy would change what it copies. What is kept beside a device should not lie there either, and it is said when it does: a run ends with exit code 3 when what is left does not get less, and fails rather than leave less than a tenth of that filesystem free, or less than 1 GiB of a large one.

A DST that exists is overwritten by itself only when it is a mirror of SRC, or holds nothing. An image that is an older copy of SRC, or a mirror whose folder was lost, is gone on with by --adopt: it compares places that are spread over both, only reading, and refuses a DST of which less than half is the same. --force overwrites whatever DST holds. A mirror that was used since the last run (mounted read-write, formatted, partitioned) is refused without --force: a run would revert that. Nothing writes to a DST that is in use: mounted, part of another device, open for writing in another program, or locked, as QEMU does. --dry-run says what a run would do to DST.

SRC and DST are on this machine: host:path, URLs and - are refused. Mount the folder of another machine here, or attach its disk, and name that. A SRC that is itself a mirror is brought to its end first where an update waits, and refused where its first copy has not ended (see "tidemark recover").

The first run starts tracking the writes to SRC. When it cannot be told what changed (a reboot, another disk, no support in the kernel), a run reads all of SRC, compares, and writes only what differs. Without support in the kernel (see "tidemark doctor"), or with --tracker scan, that can only be done while a mounted SRC is frozen, which takes longer than --max-freeze but for small disks and ends with exit code 3: unmount it, or allow the time with --max-freeze or --force-freeze.

SRC is a path, the mount point of a filesystem, or UUID=, LABEL=, PARTUUID= or PARTLABEL= with a value, as in fstab(5); DST too where it is a device, but for mount points: by PARTUUID= or PARTLABEL=, since UUID and label become those of SRC. Tags are looked up with blkid(8), at each run. Where several devices answer, all are named and the run is refused. The mirror is one of the device that was found, not of its tag.

A filesystem may lie on several devices: a btrfs with members, an XFS with its log or real-time data elsewhere, an ext4 with its journal elsewhere; and so may what is below it, md, LVM and bcache. When not all of them are copied, the run names those that are missing and is refused: give each with --pair, or all with --whole, or where the message says so name the device on top. --force-part copies the part.

Hooks are run by /bin/sh and killed after 60 s. They find in their environment TIDEMARK_HOOK ("pre-hook" or "post-hook"), TIDEMARK_SOURCE (the first SRC) and TIDEMARK_SOURCES (all, one a line). They run again with each freeze that had to be given up and is tried again.

A dm-era device (see "tidemark era create") is not tracked: it is asked for its eras, which outlive reboots and power cuts. A run takes the metadata snapshot while SRC stands still, and drops it. The mark is lost, and all is compared, when the device was resized, took discards, or has other metadata or data than before. Writes to the data device past the era device are noticed only by chance: do not mount it. Each pass while SRC is in use first suspends the device for a moment, which waits for the writes under way, since dm-era does not tell when a write ends; no filesystem is frozen for that.`,
		example: `tidemark mirror /dev/vdb1 /backup/vdb1.img
# What would be copied?
tidemark mirror --dry-run /dev/vdb1 /backup/vdb1.img
# Two disks of one database, at the same instant, every ten minutes
tidemark mirror --every 10m --pair /dev/vdb=/backup/vdb.img --pair /dev/vdc=/backup/vdc.img`,
		exits: append(interruptible(), exitNoConverge, exitRefused, exitBusy, exitDamaged),
		args:  f.checkArgs,
		run:   func(cmd *cobra.Command, args []string) error { return f.run(cmd, args, g) },
	}.build()
	f.add(cmd)
	return cmd
}

func (f *mirrorFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&f.pairs, "pair", nil, "one `src=dst` of several that are copied at the same instant; instead of SRC and DST. It is split at the first =, where SRC is UUID=, LABEL=, PARTUUID= or PARTLABEL= at the second")
	addChoice(cmd, &f.tracker, "tracker", "how to find out what changed: auto asks the metadata of a dm-era device, uses bpf elsewhere where it can; scan reads and compares everything", "auto", "bpf", "era", "scan")
	addChoice(cmd, &f.view, "view", "what stands still: auto freezes where a filesystem is mounted; offline relies on nobody writing", "auto", "freeze", "offline")
	flags.DurationVar(&f.maxFreeze, "max-freeze", transfer.DefaultMaxFreeze, fmt.Sprintf("longest `time` that filesystems may be frozen in one attempt, of which a run makes %d at most", transfer.MaxAttempts))
	flags.BoolVar(&f.forceFreeze, "force-freeze", false, "freeze for longer than --max-freeze, ten minutes at most, when what is left does not get small enough")
	flags.StringVar(&f.preHook, "pre-hook", "", "shell `command` to run just before each freeze; nothing is frozen if it fails")
	flags.StringVar(&f.postHook, "post-hook", "", "shell `command` to run after each thaw, also when the copy failed")
	flags.Var(&f.bwLimit, "bwlimit", "bytes to read each second while SRC is in use, as 100MB (no limit by default)")
	flags.Var(&f.blockSize, "block-size", "granularity of a tracking that this run starts, a power of two from 4KiB on (by default 4KiB up to 1 TiB, then more)")
	flags.BoolVarP(&f.dryRun, "dry-run", "n", false, "print what would be copied, and write nothing")
	flags.BoolVar(&f.force, "force", false, "overwrite what DST holds: a device with a filesystem, an image with content, the mirror of another source or of a larger one, or one of which what is known is damaged; never a target in use")
	flags.BoolVar(&f.adopt, "adopt", false, "go on with a DST that is no known mirror of SRC, when a comparison finds that it is mostly the same: an older copy")
	flags.BoolVar(&f.whole, "whole", false, "copy the other devices that a filesystem on SRC lies on as well, at the same instant: with DST /backup/data.img that of /dev/vdc1 to /backup/data-vdc1.img")
	flags.BoolVar(&f.forcePart, "force-part", false, "copy SRC although what is on it lies on other devices too, which are not copied: the copy alone may be of no use")
	flags.DurationVar(&f.every, "every", 0, "repeat at this `interval` until stopped")
	addJSON(cmd, &f.asJSON, "one object a line for each run and pair")
}

// checkArgs judges what flags alone cannot.
func (f *mirrorFlags) checkArgs(_ *cobra.Command, args []string) error {
	if f.maxFreeze <= 0 {
		return errors.New("--max-freeze must be above zero")
	}
	if f.every < 0 {
		return errors.New("--every must not be negative")
	}
	if f.adopt && f.force {
		return errors.New("--adopt and --force exclude each other")
	}
	if f.dryRun && f.every > 0 {
		return errors.New("--dry-run and --every do not go together")
	}
	if f.whole && f.forcePart {
		return errors.New("--whole and --force-part do not go together")
	}
	if b := int64(f.blockSize); b != 0 && (b < 4096 || b&(b-1) != 0) {
		return fmt.Errorf("--block-size %d is not a power of two from 4096 on (K is 1000, KiB is 1024)", b)
	}
	_, err := f.pairsOf(args)
	return err
}

// pairsOf returns what to copy where.
func (f *mirrorFlags) pairsOf(args []string) ([]pairs.Pair, error) {
	switch {
	case len(f.pairs) == 0 && len(args) == 2:
		return []pairs.Pair{{Source: args[0], Target: args[1]}}, nil
	case len(f.pairs) == 0:
		return nil, fmt.Errorf("give SRC and DST, or --pair SRC=DST; got %d arguments", len(args))
	case len(args) > 0:
		return nil, errors.New("give either SRC and DST or --pair, not both")
	}
	targets := map[string]bool{}
	var list []pairs.Pair
	for _, text := range f.pairs {
		pair, err := pairs.ParsePair(text)
		if err != nil {
			return nil, fmt.Errorf("--pair %w", err)
		}
		if targets[pair.Target] {
			return nil, fmt.Errorf("--pair: %s is the target of two pairs", pair.Target)
		}
		targets[pair.Target] = true
		list = append(list, pair)
	}
	return list, nil
}

func (f *mirrorFlags) run(cmd *cobra.Command, args []string, g *globals) error {
	list, err := f.pairsOf(args)
	if err != nil {
		return usageError{err}
	}
	defer outliveReaders()()
	once := func(ctx context.Context) error {
		bar := &noting{progress: newProgress(cmd.ErrOrStderr(), f.asJSON), notes: []string{}}
		reports, err := f.mirror(ctx, g, list, bar)
		bar.End()
		unread := f.print(ctx, cmd.OutOrStdout(), list, reports, bar.notes, err)
		if errors.Is(unread, syscall.EPIPE) {
			unread = fmt.Errorf("%w: %w", errNoReader, unread)
		}
		if err != nil && f.asJSON {
			err = told{err}
		}
		return errors.Join(err, unread)
	}
	if f.every == 0 {
		return once(cmd.Context())
	}
	return repeat(cmd.Context(), f.every, once, func(err error) {
		fmt.Fprintf(cmd.ErrOrStderr(), "tidemark: %v\ntidemark: trying again in %v\n", err, f.every)
	})
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

// repeat calls once at every interval until ctx ends; a call that takes longer
// delays the next. An error that may pass is told and tried again; a refusal, damage
// or a signal ends it, and so does a source that cannot be opened the first time, and
// an output that nobody reads.
func repeat(ctx context.Context, interval time.Duration, once func(context.Context) error, told func(error)) error {
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	for first := true; ; first = false {
		if err := once(ctx); err != nil {
			if first && errors.Is(err, pairs.ErrSource) || errors.Is(err, errNoReader) {
				return err
			}
			switch classify(ctx, err).code {
			case exitUsage, exitRefused, exitDamaged, exitHungUp, exitInterrupted, exitTerminated:
				return err
			}
			told(err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticks.C:
		}
	}
}

// print tells what a run did. A run that failed before it had anything to report
// still gives programs one object for each pair. What people are told on stderr is
// in each of them.
func (f *mirrorFlags) print(ctx context.Context, w io.Writer, list []pairs.Pair, reports []transfer.Report, notes []string, failed error) error {
	if !f.asJSON {
		if failed != nil {
			return nil
		}
		return printReports(w, reports)
	}
	if len(reports) == 0 && failed != nil {
		for _, p := range list {
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

func printReports(w io.Writer, reports []transfer.Report) error {
	for _, rep := range reports {
		if rep.Outcome == transfer.Planned {
			if err := printPlan(w, rep); err != nil {
				return err
			}
			continue
		}
		_, err := fmt.Fprintf(w, "%s -> %s: %s (%s, %s): read %s, wrote %s in %v, frozen for %v\n",
			rep.Source, rep.Target, rep.Mode, rep.Tracker, rep.View,
			size(rep.Read), size(rep.Written), rep.Took.Round(time.Millisecond), rep.Frozen.Round(100*time.Microsecond))
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
	_, err := fmt.Fprintf(w, "%s -> %s: would read %s (%s, %s, %s%s)\n",
		rep.Source, rep.Target, size(rep.Read), rep.Mode, rep.Tracker, rep.View, why)
	return err
}
