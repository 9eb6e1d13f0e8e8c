package main

import (
	"cmp"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tidemark/format/state"
	"tidemark/transfer/pairs"
)

// statusRuns is how many runs people are shown; --json has them all.
const statusRuns = 10

// mirrorStatus is what "status" says.
type mirrorStatus struct {
	Path    string `json:"path"`
	Pending bool   `json:"pending"` // see pairs.Known
	state.State
}

func newStatus(g *globals) *cobra.Command {
	var asJSON bool
	cmd := command{
		use: "status DST", short: "Show of what a mirror is the copy, and since when",
		example: "tidemark status /backup/vdb1.img\n# for programs\ntidemark status --json /backup/vdb1.img",
		exits:   []exitCode{exitDamaged},
		args:    cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			path, err := pairs.TargetPath(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			known, err := pairs.Status(path, g.stateDir)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), mirrorStatus{path, known.Pending, known.State})
			}
			return printStatus(cmd.OutOrStdout(), path, known)
		},
	}.build()
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

func printStatus(w io.Writer, path string, s pairs.Known) error {
	if _, err := fmt.Fprintf(w, "%s: %s\n", path, completeness(s)); err != nil {
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "  source\t%s\n", s.Source.Path)
	fmt.Fprintf(table, "  size\t%s, in blocks of %s\n", size(s.Size), size(s.BlockSize))
	fmt.Fprintf(table, "  mark\t%s\n", cmp.Or(s.Mark, "none: the next run reads all of the source"))
	if err := table.Flush(); err != nil || len(s.Runs) == 0 {
		return err
	}
	fmt.Fprintln(w)
	table = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "run\ttracker\tview\tread\twritten\tfrozen\ttook\toutcome")
	for _, r := range s.Runs[max(0, len(s.Runs)-statusRuns):] {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%.1f ms\t%s\t%s\n", r.Time.Local().Format(time.DateTime), r.Tracker, r.View,
			size(r.Read), size(r.Written), r.FrozenMS, time.Duration(r.TookMS*float64(time.Millisecond)).Round(time.Millisecond), r.Outcome)
	}
	return table.Flush()
}

func completeness(s pairs.Known) string {
	switch {
	case !s.Complete:
		return fmt.Sprintf("incomplete: %s of %s copied; run mirror again", size(s.Copied), size(s.Size))
	case s.Pending:
		return "between the copy of " + s.Time.Local().Format(time.DateTime) + " and a newer one that is committed; the next mirror run finishes it, and so does \"tidemark recover\""
	}
	return "a copy of " + s.Time.Local().Format(time.DateTime)
}
