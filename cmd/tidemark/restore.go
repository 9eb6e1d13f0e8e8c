package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidemark/agent/job"
	"tidemark/extent"
	"tidemark/transfer/restore"
	"tidemark/transfer/target"
)

// restoreFlags is the command line of "restore".
type restoreFlags struct {
	vault     vaultFlags
	part      byteRange
	inPlace   bool
	tracker   choice
	bwLimit   byteRate // 0 is no limit
	force     bool
	unchecked bool
	noJournal bool
	verify    bool
	dryRun    bool
	asJSON    bool
}

func newRestore(g *globals) *cobra.Command {
	f := &restoreFlags{}
	cmd := command{
		use: "restore IMAGE|VAULT [POINT] DST", short: "Bring a copy or a point of a vault back to a disk, or to a new image",
		long: `With two arguments, writes what the mirror IMAGE, an image file or a device, is the copy of to DST; with three, the point POINT of VAULT. DST is a block device (by its path, or UUID=, LABEL=, PARTUUID= or PARTLABEL=) or an image file (made when missing, sparse). What was known of DST as a mirror is forgotten. IMAGE is only read, and may lie on a read-only filesystem.

` + pointWords + `. ` + vaultAddress + `.

A point is checked against its seals as it is read. What the vault has lost of it is not written, all else is; it is named, and the command ends with exit code 5. With --range only a part of the point is restored, as a disk of its own: a partition, to a partition or an image.

Each block of IMAGE is held against its checksum before it is written. One that is not what it should be, or cannot be read, is not written; all the others are, the bad ones are named, and the command ends with exit code 5. With --unchecked it is written as it is. An IMAGE without checksums is refused without --unchecked. A mirror with an update that waits since a crash is brought up to date first, one whose first copy has not ended is refused.

Refused, before anything is written: a DST that is mounted or in use, that is IMAGE or holds it, or that is smaller than the copy; and, without --force, one that holds a filesystem or anything else that is known, is a mirror, or is an image that exists.

A restore that was cut off goes on when it is run again. Until it has ended, DST is not accepted as the source of a mirror. When DST looks otherwise than that run left it (another program has written to it, or the power was cut), what is there is first held against the checksums.

When DST is the disk that IMAGE or POINT is of, or with --in-place, only what differs is written. On that disk what may differ is told by the tracking of its writes, where that goes back to the copy, or to the newest point of the vault, whose map says where POINT differs: all of that is written from a point, and what differs of it from an IMAGE. Otherwise DST is read and compared. It goes through a journal in the state folder (--state-dir), so that DST is what it was or the copy, whatever crashes; with --no-journal it is written in place. Unmount DST first. Later runs of "tidemark mirror" and "tidemark backup" go on from there.

After IMAGE was restored DST is no mirror. After POINT it is one of the disk that POINT is of, where that is in this machine and its tracking still knows the mark of POINT: "tidemark mirror" goes on from there. That is said, and why not where the mark is lost.

On a larger whole disk the second copy of a GPT is moved to its end. What else there is to be done is told, and not done: to make partitions and filesystems larger, to have other UUIDs beside the original, to boot from it.`,
		example: `# onto a new disk
tidemark restore /backup/vdb1.img /dev/vdc1
# Back to what the disk was at the last run of "tidemark mirror". Later changes are lost.
umount /dev/vdb1
tidemark restore --force /backup/vdb1.img /dev/vdb1
# What would be done?
tidemark restore --dry-run /backup/vdb1.img /dev/vdc1
# from a vault: as it was two days ago, to a new image
tidemark restore /backup/vault vdb1@-2d vdb1.img`,
		exits: append(interruptible(), exitDifferent, exitRefused, exitBusy, exitDamaged),
		args:  f.checkArgs,
		run: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd.Context(), args, g, stdio{cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()})
		},
	}.build()
	flags := cmd.Flags()
	f.vault.add(cmd)
	flags.Var(&f.part, "range", "restore this part of POINT alone, `OFFSET+LENGTH` in bytes or with units, as 1M+512M")
	flags.BoolVar(&f.inPlace, "in-place", false, "read DST, which exists, and write only what differs, through a journal")
	flags.BoolVar(&f.force, "force", false, "overwrite what DST holds, whatever that is; never a DST in use")
	flags.BoolVar(&f.unchecked, "unchecked", false, "restore also what is not what its checksums say, and an IMAGE without checksums")
	flags.BoolVar(&f.noJournal, "no-journal", false, "write in place also to the disk that IMAGE is of: after a crash it is neither what it was nor the copy, until the restore was run again")
	flags.BoolVar(&f.verify, "verify", false, "read DST back from its disk in the end, and hold it against the checksums")
	addChoice(cmd, &f.tracker, "tracker", "how to find out what differs on the disk that IMAGE is of: auto asks the tracking of its writes; scan reads and compares all of it", "auto", "scan")
	addSize(cmd, &f.bwLimit, "bwlimit", "how much of IMAGE to read each second, as 100MB; no limit by default")
	flags.BoolVarP(&f.dryRun, "dry-run", "n", false, "print what would be done, and write nothing")
	addJSON(cmd, &f.asJSON, "one object")
	cmd.ValidArgsFunction = g.completeMirrors
	return cmd
}

// checkArgs judges what flags alone cannot.
func (f *restoreFlags) checkArgs(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) < 2:
		return errors.New("give IMAGE and DST, or VAULT, POINT and DST")
	case len(args) > 3:
		return fmt.Errorf("%q is one argument too many", args[3])
	case len(args) == 3 && f.unchecked:
		return errors.New("--unchecked is for images: what a vault cannot vouch for it does not have")
	case len(args) == 3:
		return nil
	}
	for _, name := range []string{"range", "endpoint", "no-encryption", "passphrase-file", "passphrase-command", "identity"} {
		if cmd.Flags().Changed(name) {
			return fmt.Errorf("--%s is for vaults: give VAULT, POINT and DST", name)
		}
	}
	return nil
}

func (f *restoreFlags) run(ctx context.Context, args []string, g *globals, std stdio) error {
	defer outliveReaders()()
	bar := &noting{progress: newProgress(std.errs, f.asJSON), notes: []string{}}
	rep, err := f.restore(ctx, args, restore.Options{
		StateDir: g.stateDir, Track: g.trackOptions(), Tracker: f.tracker.value,
		BytesPerSec: int64(f.bwLimit.byteSize), Overwrite: f.force, Progress: shower(bar), InPlace: f.inPlace,
		Unchecked: f.unchecked, NoJournal: f.noJournal, Verify: f.verify, DryRun: f.dryRun,
	})
	bar.End()
	if errors.Is(err, target.ErrHoldsOther) {
		err = hinted{err, "give another target; --force overwrites whatever it holds"}
	}
	if !f.asJSON {
		if err == nil {
			err = printRestored(std.out, rep, f.dryRun)
		}
		return err
	}
	if rep.Notes, rep.Code = bar.notes, rep.Outcome; err != nil {
		rep.Code, rep.Outcome = classify(ctx, err).name, err.Error()
	}
	unread := printJSON(std.out, rep)
	if err != nil {
		err = told{err}
	}
	return errors.Join(err, unread)
}

// restore brings an image or a point to the last argument.
func (f *restoreFlags) restore(ctx context.Context, args []string, o restore.Options) (restore.Result, error) {
	if len(args) == 2 {
		return restore.Restore(ctx, args[0], args[1], o)
	}
	rep := restore.Result{Source: args[0], Target: args[2], Damaged: []restore.Damage{}}
	compute()
	v, err := f.vault.open(ctx, args[0])
	if err != nil {
		return rep, err
	}
	p, d, err := v.Find(ctx, args[1], time.Now())
	if err == nil {
		rep, err = restore.RestorePoint(ctx, restore.Point{
			Vault: v.Vault, Address: v.store.String(), Disk: d, Point: p, Range: extent.Extent(f.part),
		}, args[2], o)
	}
	return rep, errors.Join(err, v.Close())
}

// byteRange is a flag for a part of a disk, as 1M+512M.
type byteRange extent.Extent

func (r *byteRange) Type() string { return "range" }

func (r *byteRange) String() string {
	if *r == (byteRange{}) {
		return ""
	}
	return extent.Extent(*r).String()
}

// Set implements pflag.Value.
func (r *byteRange) Set(text string) (err error) {
	off, length, ok := strings.Cut(text, "+")
	if !ok {
		return errors.New("must be OFFSET+LENGTH, as 1M+512M")
	}
	if off != "0" {
		if r.Off, err = job.ParseSize(off); err != nil {
			return err
		}
	}
	r.Len, err = job.ParseSize(length)
	return err
}

func printRestored(w io.Writer, rep restore.Result, dry bool) error {
	what := rep.Source
	if rep.Point != "" {
		what = fmt.Sprintf("%s: %s %s of %s", rep.Source, rep.Of, shortID(rep.Point), stamp(rep.Time))
	} else if rep.Of != "" {
		what = fmt.Sprintf("%s, the copy of %s of %s", rep.Source, rep.Of, stamp(rep.Time))
	}
	if dry {
		_, err := fmt.Fprintf(w, "%s <- %s: would restore %s (%s)\n", rep.Target, what, size(rep.Size), rep.Mode)
		return err
	}
	did := []string{"restored " + size(rep.Size)}
	if rep.Compared > 0 {
		did = append(did, "compared "+size(rep.Compared))
	}
	did = append(did, "read "+size(rep.Read), "wrote "+size(rep.Written))
	_, err := fmt.Fprintf(w, "%s <- %s: %s (%s) in %v\n", rep.Target, what, strings.Join(did, ", "), rep.Mode, rep.Took.Round(time.Millisecond))
	return err
}
