package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"tidemark/transfer"
	"tidemark/transfer/pairs"
	"tidemark/transfer/target"
)

// mirrorFlags is the command line of "mirror".
type mirrorFlags struct {
	copyFlags
	pairs []string // SRC=DST
	force bool
	adopt bool
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
	f.copyFlags.add(cmd)
	flags.BoolVar(&f.force, "force", false, "overwrite what DST holds: a device with a filesystem, an image with content, the mirror of another source or of a larger one, or one of which what is known is damaged; never a target in use")
	flags.BoolVar(&f.adopt, "adopt", false, "go on with a DST that is no known mirror of SRC, when a comparison finds that it is mostly the same: an older copy")
	flags.BoolVar(&f.whole, "whole", false, "copy the other devices that a filesystem on SRC lies on as well, at the same instant: with DST /backup/data.img that of /dev/vdc1 to /backup/data-vdc1.img")
	addJSON(cmd, &f.asJSON, "one object a line for each run and pair")
}

// checkArgs judges what flags alone cannot.
func (f *mirrorFlags) checkArgs(cmd *cobra.Command, args []string) error {
	if f.adopt && f.force {
		return errors.New("--adopt and --force exclude each other")
	}
	if err := f.check(cmd); err != nil {
		return err
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
	return f.copying(g, list).run(cmd)
}

// copying is what the command line asks for.
func (f *mirrorFlags) copying(g *globals, list []pairs.Pair) *copying {
	c := &copying{f: &f.copyFlags, list: list}
	c.copy = func(ctx context.Context, bar progress) ([]transfer.Report, error) {
		o := f.options(g, bar)
		o.Overwrite, o.Adopt = f.force, f.adopt
		if f.dryRun {
			return pairs.Plan(ctx, list, o)
		}
		return pairs.Mirror(ctx, list, o)
	}
	c.standing = func() []string {
		var lines []string
		for _, p := range list {
			if known, failed := target.Status(p.Target, g.stateDir); failed == nil {
				lines = append(lines, p.Target+": "+completeness(known, false))
			}
		}
		return lines
	}
	return c
}
