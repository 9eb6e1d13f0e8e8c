package main

import (
	"cmp"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"tidemark/boot"
)

func newBootStatus(g *globals) *cobra.Command {
	var root string
	var asJSON bool
	cmd := command{
		use: "status", short: "Show which devices the next boot opens",
		long: `Lists the devices of /etc/tidemark/era.conf, the disks whose tracking outlives a clean reboot, with why the next one would lose their marks, the files that were made from it (same, outdated, missing, changed by hand, or foreign: in the way), and the initramfs images in /boot: current (made of the table, tidemark and scripts as they are now), stale (made before one of these changed), without (it opens no device), or unknown (lsinitramfs or lsinitrd of that system could not list it). Each kernel in /boot counts, the newest as well: the next boot may be with any.

Ends with 5 when anything is not as it should be; "tidemark boot install" without options writes the files anew.`,
		example: "tidemark boot status\n# for programs\ntidemark boot status --json",
		exits:   []exitCode{exitDifferent},
		args:    cobra.NoArgs,
		run: func(cmd *cobra.Command, _ []string) error {
			return withSystem(root, func(sys *boot.System, _ boot.Tab) error {
				found, err := sys.Lasting(g.stateDir)
				if err != nil {
					return err
				}
				st := found.Status
				if asJSON {
					err = printJSON(cmd.OutOrStdout(), st)
				} else {
					err = printBoot(cmd.OutOrStdout(), st)
				}
				if err == nil && !st.Good() {
					err = told{hinted{fmt.Errorf("boot: %w", errDifferent), `"tidemark boot install --update" puts it right`}}
				}
				return err
			})
		},
	}.build()
	addBootRoot(cmd, &root)
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

func printBoot(out io.Writer, st boot.Status) error {
	if len(st.Devices)+len(st.Tracked)+len(st.Files) == 0 {
		_, err := fmt.Fprintln(out, "no device is opened at boot")
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(st.Devices) > 0 {
		fmt.Fprintln(table, "device\topened by\tdata\tmetadata")
	}
	for _, e := range st.Devices {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", e.Path(), e.Stage, e.Data, cmp.Or(e.Meta, e.Kind()))
	}
	for _, d := range st.Tracked {
		after := "the marks are kept when it is clean"
		fmt.Fprintf(table, "%s\ttracked\tthe next reboot: %s\n", d.Disk, cmp.Or(d.LostAtReboot, after))
	}
	fmt.Fprintln(table, "\nfile\tstate")
	for _, f := range st.Files {
		fmt.Fprintf(table, "%s\t%s\n", f.Path, f.State)
	}
	if len(st.Images) > 0 {
		fmt.Fprintln(table, "\nimage\tstate")
	}
	for _, i := range st.Images {
		fmt.Fprintf(table, "%s\t%s\t%s\n", i.Path, i.State, i.Reason)
	}
	return table.Flush()
}
