package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"tidemark/cmd/tidemark/internal/doctor"
)

func newDoctor(g *globals) *cobra.Command {
	var asJSON bool
	cmd := command{
		use: "doctor", short: "Tell what this machine can do",
		long: `Tries what a live mirror needs from the kernel and from the user, and says of each thing what follows. Nothing is changed.

It ends with 0 when a mounted filesystem can be mirrored, if need be by reading all of it each time.`,
		example: "tidemark doctor\n# for programs\ntidemark doctor --json",
		args:    cobra.NoArgs,
		run: func(cmd *cobra.Command, _ []string) error {
			return printDoctor(cmd.OutOrStdout(), doctor.Run(doctor.Options{BPFFS: g.bpffs}), asJSON)
		},
	}.build()
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

func printDoctor(w io.Writer, rep doctor.Report, asJSON bool) error {
	if asJSON {
		if err := printJSON(w, rep); err != nil {
			return err
		}
	} else if err := printChecks(w, rep); err != nil {
		return err
	}
	if rep.Live == doctor.None {
		return told{errNotReady}
	}
	return nil
}

func printChecks(w io.Writer, rep doctor.Report) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range rep.Checks {
		state := "ok"
		if !c.OK {
			state = "missing"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n\t\t→ %s\n", c.Name, state, c.Detail, c.Consequence)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\nLive mirrors: %s.\n", liveText(rep.Live))
	return err
}

func liveText(l doctor.Live) string {
	switch l {
	case doctor.Incremental:
		return "yes, and runs read only what changed"
	case doctor.Scan:
		return "yes, but each run reads the whole source"
	}
	return "no"
}
