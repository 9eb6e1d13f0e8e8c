package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"tidemark/transfer"
	"tidemark/transfer/pairs"
)

// backupFlags is the command line of "backup".
type backupFlags struct {
	copyFlags
	vault vaultFlags
	disks []string
	tags  []string
}

func newBackup(g *globals) *cobra.Command {
	f := &backupFlags{}
	cmd := command{
		use: "backup SRC... VAULT", short: "Keep a point of a live block device in a vault",
		long: `Makes a point of each SRC, a block device or an image file, in VAULT: all that SRC is at one instant. The first one reads and stores all of SRC that is not zeros; later ones read and store what changed since. Several SRC are copied at the same instant, and their points have the same run.

` + vaultAddress + `.

A point belongs to a disk of the vault. Without --disk it is the one that SRC is known by (what "tidemark status" calls it: its serial number, UUID or backing file), and at first one named after the end of SRC's path: vdb1 for /dev/vdb1. Where a disk of that name is something else, or of another machine, the run is refused, and --disk names another. --disk goes on with whatever disk has that name, after a disk was replaced as well.

While SRC is in use, what changed is copied again and again until little is left. Then every filesystem on SRC is frozen, the rest is read, and the filesystems are thawed; a watchdog thaws them even if tidemark is killed. The point appears in one step when all of it is stored. A run that is interrupted leaves none; what it stored is found again by the next one, chunk by chunk. A lost connection is tried again for ten minutes.

How changes are tracked, what stands still, how SRC is named, hooks, and filesystems on several devices: all that is as "tidemark mirror" has it, and its manual page tells. When it cannot be told what changed, all of SRC is read, and what the vault has already is not stored again. A VAULT on a filesystem of SRC is refused.

Points are listed by "tidemark points", and brought back by "tidemark restore".`,
		example: `tidemark backup /dev/vdb1 /backup/vault
tidemark backup --tag before-upgrade --disk web1-root /dev/vda2 sftp://backup@nas.example.org/srv/vault
# Two disks of one database, at the same instant, every hour
tidemark backup --every 1h --passphrase-file /etc/tidemark/passphrase /dev/vdb /dev/vdc /backup/vault`,
		exits: append(interruptible(), exitNoConverge, exitRefused, exitBusy, exitDamaged),
		args:  f.checkArgs,
		run:   func(cmd *cobra.Command, args []string) error { return f.run(cmd, args, g) },
	}.build()
	f.copyFlags.add(cmd)
	cmd.Flags().BoolVar(&f.whole, "whole", false, "copy the other devices that a filesystem on SRC lies on as well, at the same instant, each to the disk of the vault that it is known by")
	cmd.Flags().StringArrayVar(&f.disks, "disk", nil, "the `name` of the disk of the vault that gets the point; for several SRC once for each, in their order")
	cmd.Flags().StringArrayVar(&f.tags, "tag", nil, "a `word` that the point is marked with; may be given several times")
	f.vault.add(cmd)
	addJSON(cmd, &f.asJSON, "one object a line for each run and SRC")
	return cmd
}

func (f *backupFlags) checkArgs(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return errors.New("SRC and VAULT are missing")
	case len(args) == 1:
		return fmt.Errorf("VAULT is missing: where shall the backup of %s go?", args[0])
	case len(f.disks) > 0 && len(f.disks) != len(args)-1:
		return fmt.Errorf("--disk was given %d times for %d SRC", len(f.disks), len(args)-1)
	}
	for _, tag := range f.tags {
		if tag == "" || strings.ContainsAny(tag, ", \t\n") {
			return fmt.Errorf("--tag %q is not one word", tag)
		}
	}
	return f.check(cmd)
}

func (f *backupFlags) run(cmd *cobra.Command, args []string, g *globals) (err error) {
	address := args[len(args)-1]
	var list []pairs.Pair
	for i, src := range args[:len(args)-1] {
		p := pairs.Pair{Source: src}
		if len(f.disks) > 0 {
			p.Target = f.disks[i]
		}
		list = append(list, p)
	}
	v, err := f.vault.open(cmd.Context(), address)
	if err != nil {
		return err
	}
	into := pairs.Vault{Vault: v.Vault, Address: v.store.String(), Tags: f.tags}
	if !strings.Contains(address, "://") {
		if into.Folder, err = filepath.Abs(address); err != nil {
			return errors.Join(err, v.Close())
		}
	}
	c := &copying{f: &f.copyFlags, list: list}
	c.copy = func(ctx context.Context, bar progress) ([]transfer.Report, error) {
		if f.dryRun {
			return pairs.PlanBackup(ctx, list, into, f.options(g, bar))
		}
		return pairs.Backup(ctx, list, into, f.options(g, bar))
	}
	return errors.Join(c.run(cmd), v.Close())
}

// shortID is how people are shown the id of a point.
func shortID(id string) string { return id[:min(len(id), 8)] }
