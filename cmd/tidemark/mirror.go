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

// mirrorFlags is the command line of "mirror".
type mirrorFlags struct {
	pairs       []string // SRC=DST
	tracker     choice
	view        choice
	maxFreeze   time.Duration
	forceFreeze bool
	preHook     string
	postHook    string
	bwLimit     byteRate // 0 is no limit
	blockSize   byteSize // 0 chooses
	dryRun      bool
	force       bool
	adopt       bool
	whole       bool
	forcePart   bool
	hookTimeout time.Duration
	showHooks   bool
	every       time.Duration // 0 runs once
	quiet       bool
	asJSON      bool
}

func newMirror(g *globals) *cobra.Command {
	f := &mirrorFlags{}
	cmd := command{
		use: "mirror SRC DST", short: "Bring a copy of a live block device up to date",
		long: `Copies SRC, a block device or an image file, to DST, a raw image file (made when missing) or a block device. The first run reads all of SRC and writes what is not zeros; later runs read and write only what changed since. When a run ends, DST equals what SRC was at one instant.

While SRC is in use, what changed is copied again and again until little is left. Then every filesystem on SRC is frozen, the rest is read, and the filesystems are thawed; a watchdog thaws them even if tidemark is killed. DST is old or new, never between: a run that is interrupted leaves it as it was, and the next run goes on or finishes it.

What is known of an image file is kept beside it, in the folder DST.tidemark; of a device, in the state folder (--state-dir). Checksums take 4 MiB there for each GiB of SRC, and each run after the first a journal, as large as what changed, until it has ended. A DST on a filesystem of SRC is refused: each copy would change what it copies. What is kept beside a device should not lie there either, and it is said when it does: a run ends with exit code 3 when what is left does not get less, and fails rather than leave less than a tenth of that filesystem free, or less than 1 GiB of a large one.

A DST that exists is overwritten by itself only when it is a mirror of SRC, or holds nothing. An image that is an older copy of SRC, or a mirror whose folder was lost, is gone on with by --adopt: it compares places that are spread over both, only reading, and refuses a DST with another filesystem (another UUID), or of which less than half is the same. --force overwrites whatever DST holds. A mirror that was used since the last run (mounted read-write, formatted, partitioned) is refused without --force: a run would revert that. Nothing writes to a DST that is in use: mounted, part of another device, open for writing in another program, or locked, as QEMU does. --dry-run says what a run would do to DST.

SRC and DST are on this machine: host:path, URLs and - are refused. Mount the folder of another machine here, or attach its disk, and name that. A SRC that is itself a mirror is brought to its end first where an update waits, and refused where its first copy has not ended (see "tidemark recover").

The first run starts tracking the writes to SRC. When it cannot be told what changed (a reboot, another disk, no support in the kernel), a run reads all of SRC, compares, and writes only what differs. Without support in the kernel (see "tidemark doctor"), or with --tracker scan, that can only be done while a mounted SRC is frozen, which takes longer than --max-freeze but for small disks and ends with exit code 3: unmount it, or allow the time with --max-freeze or --force-freeze.

SRC is a path, the mount point of a filesystem, or UUID=, LABEL=, PARTUUID= or PARTLABEL= with a value, as in fstab(5); DST too where it is a device, but for mount points: by PARTUUID= or PARTLABEL=, since UUID and label become those of SRC. Tags are looked up with blkid(8), at each run. Where several devices answer, all are named and the run is refused. The mirror is one of the device that was found, not of its tag.

A filesystem may lie on several devices: a btrfs with members, an XFS with its log or real-time data elsewhere, an ext4 with its journal elsewhere; and so may what is below it, md, LVM and bcache. When not all of them are copied, the run names those that are missing and is refused: give each with --pair, or all with --whole, or where the message says so name the device on top. --force-part copies the part.

"tidemark mount DST DIR" shows the files of the copy, read-only; until "tidemark umount DIR" DST is in use, and a run refuses it. Never mount DST read-write, not even once: that changes it, and the next run is refused. The copy has the UUIDs of SRC. With a device as DST they are twice on this machine: what looks for a UUID (fstab, GRUB) may take the copy at the next boot, and before Linux 6.7 a Btrfs and its copy cannot both be mounted.

Hooks are run by /bin/sh. They find in their environment TIDEMARK_HOOK ("pre-hook" or "post-hook"), TIDEMARK_SOURCE (the first SRC) and TIDEMARK_SOURCES (all, one a line). They run again with each freeze that had to be given up and is tried again. A hook has ended when its shell has: what it left running in the background lives on, as a database client that holds a lock until the post-hook ends it. One that takes longer than --hook-timeout is killed with all that it started, and fails. When the pre-hook fails, nothing is frozen and nothing copied; when the post-hook fails after the copy, the copy is there, and the exit code is 1.

A dm-era device (see "tidemark era create") is not tracked: it is asked for its eras, which outlive reboots and power cuts. A run takes the metadata snapshot while SRC stands still, and drops it. The mark is lost, and all is compared, when the device was resized, took discards, or has other metadata or data than before. Writes to the data device past the era device are noticed only by chance: do not mount it. Each pass while SRC is in use first suspends the device for a moment, which waits for the writes under way, since dm-era does not tell when a write ends; no filesystem is frozen for that.

A thin volume, of LVM or of a plain pool of dm-thin, is mirrored by a snapshot in its pool, which is the view as well: users of SRC wait for moments. The snapshot is kept until the next run, which reads what differs between the two in the pool's metadata, over reboots too; it takes room in the pool for what is written to SRC meanwhile. Several volumes are snapshotted at one instant. The mark is lost when the snapshot was removed or written to. When the pool is 95 % full, or does not accept changes, SRC is tracked and frozen like any other device, and says so. "tidemark track stop SRC" removes what is kept.

With --tracker cow:STORE, the store of a live dm-snapshot tells what changed: as of /dev/mapper/VG-SNAP-cow, or shorter of the snapshot /dev/VG/SNAP. SRC is the origin, /dev/VG/LV. A store names a chunk once, however often it is written to, so that each run reads all chunks that changed since the snapshot was made, and while SRC is frozen once more. The mark is lost, and all is compared, when the snapshot was made anew, deactivated, or the machine booted. A snapshot that is full, is being merged, or has another origin is refused.`,
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
	flags.BoolVar(&f.force, "force", false, "overwrite what DST holds: a device with a filesystem, an image with content, the mirror of another source or of a larger one, or one of which what is known is damaged; never a target in use")
	flags.BoolVar(&f.adopt, "adopt", false, "go on with a DST that is no known mirror of SRC, when a comparison finds that it is mostly the same: an older copy")
	flags.BoolVar(&f.whole, "whole", false, "copy the other devices that a filesystem on SRC lies on as well, at the same instant: with DST /backup/data.img that of /dev/vdc1 to /backup/data-vdc1.img")
	flags.BoolVar(&f.forcePart, "force-part", false, "copy SRC although what is on it lies on other devices too, which are not copied: the copy alone may be of no use")
	flags.DurationVar(&f.every, "every", 0, "repeat at this `interval` until stopped, with one line for each run")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print nothing when all is well, for cron; errors as always")
	addJSON(cmd, &f.asJSON, "one object a line for each run and pair")
}

// checkArgs judges what flags alone cannot.
func (f *mirrorFlags) checkArgs(cmd *cobra.Command, args []string) error {
	if f.maxFreeze <= 0 {
		return errors.New("--max-freeze must be above zero")
	}
	if f.maxFreeze > pairs.ForcedFreeze {
		return fmt.Errorf("--max-freeze %v is more than %v, the longest that filesystems are ever frozen", f.maxFreeze, pairs.ForcedFreeze)
	}
	if cmd.Flags().Changed("every") && f.every <= 0 {
		return errors.New("--every must be above zero; without it there is one run")
	}
	if f.adopt && f.force {
		return errors.New("--adopt and --force exclude each other")
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
	_, err := f.pairsOf(args)
	return err
}

// pairsOf returns what to copy where.
func (f *mirrorFlags) pairsOf(args []string) ([]pairs.Pair, error) {
	switch {
	case len(f.pairs) == 0 && len(args) == 2:
		return []pairs.Pair{{Source: args[0], Target: args[1]}}, nil
	case len(f.pairs) == 0 && len(args) == 0:
		return nil, errors.New("SRC and DST are missing: give both, or --pair SRC=DST")
	case len(f.pairs) == 0 && len(args) == 1:
		return nil, fmt.Errorf("DST is missing: where shall the copy of %s go?", args[0])
	case len(f.pairs) == 0:
		return nil, fmt.Errorf("%q is one argument too many; --pair SRC=DST copies several at the same instant", args[2])
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
	var before []string // was told in the run before
	once := func(ctx context.Context, next func() time.Time) error {
		bar := &noting{progress: newProgress(cmd.ErrOrStderr(), f.asJSON || f.quiet), notes: []string{}, before: before}
		_, err := f.once(ctx, cmd, g, list, bar, next)
		before = bar.notes
		return err
	}
	if f.every == 0 {
		err = once(cmd.Context(), nil)
	} else {
		err = repeat(cmd.Context(), f.every, once, func(err error, next time.Time) {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s tidemark: %v; trying again at %s\n", stamp(time.Now()), err, stamp(next))
		})
	}
	return f.standing(cmd.Context(), err, g, list)
}

// once does one run and tells what it did. It takes next as print does.
func (f *mirrorFlags) once(ctx context.Context, cmd *cobra.Command, g *globals, list []pairs.Pair, bar *noting, next func() time.Time) ([]transfer.Report, error) {
	reports, err := f.mirror(ctx, g, list, bar)
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
	unread := f.print(ctx, cmd.OutOrStdout(), list, reports, bar.notes, err, next)
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
func (f *mirrorFlags) print(ctx context.Context, w io.Writer, list []pairs.Pair, reports []transfer.Report, notes []string, failed error, next func() time.Time) error {
	if !f.asJSON {
		if failed != nil || f.quiet {
			return nil
		}
		began, end := "", "\n"
		if next != nil {
			began, end = stamp(time.Now())+" ", "; next run at "+stamp(next())+"\n"
		}
		return printReports(w, reports, began, end)
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
		_, err := fmt.Fprintf(w, "%s%s -> %s: %s (%s, %s): read %s%s, wrote %s in %v, frozen for %v%s",
			began, rep.Source, rep.Target, rep.Mode, rep.Tracker, rep.View,
			size(rep.Read), passes, size(rep.Written), rep.Took.Round(time.Millisecond), rep.Frozen.Round(100*time.Microsecond), end)
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
