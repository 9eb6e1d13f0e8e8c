package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	format "tidemark/format/vault"
	"tidemark/vault"
)

// vaultCopyFlags is the command line of "vault copy".
type vaultCopyFlags struct {
	from, to vaultFlags
	disks    []string
	asJSON   bool
}

func newVaultCopy() *cobra.Command {
	f := &vaultCopyFlags{}
	cmd := command{
		use: "copy VAULT DST [POINT...]", short: "Copy points to another vault",
		long: `Copies points of VAULT to the vault DST, which has keys of its own: all of them, those of the disks that --disk names, or each POINT. What DST has already is not stored again. A point keeps its id, its moment, its tags and its mark, so that a backup to DST can go on from it. Points that DST has are left out, and a copy that was cut off goes on where it was. "latest" is in DST, too, the point that was written last: copy older points first. Points that have lost something ("tidemark vault repair") are left out, and named.

` + pointWords + `.

` + vaultAddress + `. DST is made with "tidemark vault init" first, and is opened with the --dst options.`,
		example: `tidemark vault copy --passphrase-file /etc/tidemark/passphrase --dst-identity ~/.config/age.key /backup/vault sftp://nas.example.org/srv/vault
tidemark vault copy --passphrase-file /etc/tidemark/passphrase --dst-passphrase-file /etc/tidemark/other --disk vdb1 /backup/vault s3://bucket/vault`,
		exits: append(interruptible(), exitRefused, exitBusy, exitDamaged),
		args:  cobra.MinimumNArgs(2),
		run: func(cmd *cobra.Command, args []string) error {
			if len(f.disks) > 0 && len(args) > 2 {
				return usagef("--disk and POINT both say which points are copied")
			}
			from, err := f.from.open(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer from.Close()
			to, err := f.to.open(cmd.Context(), args[1])
			if err != nil {
				return err
			}
			if from.ID() == to.ID() {
				return errors.Join(usagef("%v and %v are the same vault", from.store, to.store), to.Close())
			}
			return errors.Join(from.copyTo(cmd.Context(), to, cmd.OutOrStdout(), f, args[2:]), to.Close())
		},
	}.build()
	f.from.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.to.endpoint, "dst-endpoint", "", "the `URL` of the server that speaks S3 of DST")
	flags.BoolVar(&f.to.noEncryption, "dst-no-encryption", false, "DST is not encrypted")
	flags.StringVar(&f.to.passphraseFile, "dst-passphrase-file", "", "a `file` with the passphrase of DST")
	flags.StringVar(&f.to.passphraseCommand, "dst-passphrase-command", "", "a shell `command` that prints the passphrase of DST")
	flags.StringArrayVar(&f.to.identities, "dst-identity", nil, "a `file` with keys of age or a private key of SSH that open DST")
	flags.StringArrayVar(&f.disks, "disk", nil, "copy the points of the disk of that `name` alone; may be given several times")
	addJSON(cmd, &f.asJSON, "one object a line for each point")
	return cmd
}

// copiedPoint is what is told of a point.
type copiedPoint struct {
	pointInfo
	Copied bool `json:"copied"`
	There  bool `json:"there"` // before
	Lost   bool `json:"lost"`  // left out for that
}

func (v *openVault) copyTo(ctx context.Context, to *openVault, w io.Writer, f *vaultCopyFlags, names []string) error {
	points, err := v.chosen(ctx, f.disks, names)
	if err != nil {
		return err
	}
	lost := 0
	err = v.CopyTo(ctx, to.Vault, points, func(c vault.Copied) error {
		copied := copiedPoint{pointInfo: infoOf(c.From, c.Disk), There: c.There, Lost: c.From.Lost && !c.There}
		if copied.Copied = !copied.There && !copied.Lost; copied.Copied {
			copied.Stored = c.To.Stored
		}
		if copied.Lost {
			lost++
		}
		return printCopied(w, copied, f.asJSON)
	})
	if err == nil && lost > 0 {
		err = fmt.Errorf("%v: %w: %d points lost something, and were left out", v.store, errDamages, lost)
	}
	return err
}

// chosen returns the points that were named, or all of some disks, or all.
func (v *openVault) chosen(ctx context.Context, only, names []string) (points []vault.Point, err error) {
	if len(names) == 0 {
		disks, err := v.Disks(ctx)
		if err != nil {
			return nil, err
		}
		for _, name := range only {
			if !slices.ContainsFunc(disks, func(d vault.Disk) bool { return d.Name == name }) {
				return nil, fmt.Errorf("%v: %w: there is no disk %q", v.store, vault.ErrNoPoint, name)
			}
		}
		points, err := v.Points(ctx, format.ID{})
		return slices.DeleteFunc(points, func(p vault.Point) bool {
			return len(only) > 0 && !slices.ContainsFunc(disks, func(d vault.Disk) bool { return d.ID == p.Name.Disk && slices.Contains(only, d.Name) })
		}), err
	}
	for _, name := range names {
		p, _, err := v.Find(ctx, name, time.Now())
		if err != nil {
			return nil, err
		}
		points = append(points, p)
	}
	return points, nil
}

func printCopied(w io.Writer, c copiedPoint, asJSON bool) error {
	if asJSON {
		return printJSON(w, c)
	}
	did := "copied, " + size(c.Stored) + " stored"
	switch {
	case c.There:
		did = "is there"
	case c.Lost:
		did = "left out: it lost something"
	}
	_, err := fmt.Fprintf(w, "%s: %s of %s: %s\n", shortID(c.ID), c.Disk, stamp(c.Moment), did)
	return err
}
