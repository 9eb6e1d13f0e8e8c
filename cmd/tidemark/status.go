package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tidemark/format/state"
	"tidemark/transfer/names"
	"tidemark/transfer/running"
	"tidemark/transfer/status"
	"tidemark/transfer/target"
	"tidemark/words"
)

const (
	statusRuns    = 10 // that people are shown; --json has them all
	statusOutcome = 70 // characters of an outcome in a table
)

// mirrorStatus is what "status" says of one mirror.
type mirrorStatus struct {
	Path      string `json:"path"`
	Condition string `json:"state"` // "running", or a status.Condition
	Reason    string `json:"reason,omitempty"`
	Pending   bool   `json:"pending"` // see target.Known
	// AgeSeconds is how long ago the source was what the copy is.
	AgeSeconds *float64     `json:"age_s,omitempty"`
	Next       string       `json:"next,omitempty"` // see status.NextChanges
	NextReason string       `json:"next_reason,omitempty"`
	Running    *running.Run `json:"running,omitempty"`
	Problems   []string     `json:"problems,omitempty"` // with --max-age
	*state.State
}

type statusFlags struct {
	forget bool
	maxAge time.Duration
	asJSON bool
}

func newStatus(g *globals) *cobra.Command {
	f := &statusFlags{}
	cmd := command{
		use: "status [DST...]", short: "Show how mirrors are, and what their next runs will read",
		long: `Without DST, tells of all mirrors that runs on this machine have made or updated: of what each is the copy, how old the copy is, its state, whether the next run reads only what changed, and how the last run ended. With DST, tells more of each. Nothing is changed, and a run that is in progress is not disturbed.

States: complete; running; failed (the last run; there is an older copy); incomplete (the first copy has not ended); pending (an update waits to be finished, see "tidemark recover"); damaged (verify found that, or what is known of the mirror is damaged); missing (the target or the folder beside it is not there, or not mounted).

With --max-age it is made for monitoring: one line for each reason, and exit code 9, when a mirror is older or in any state but complete; one line and 0 when all are well. A run in progress is no reason, but the copy that there is meanwhile must not be too old.`,
		example: `tidemark status
tidemark status /backup/vdb1.img
# For monitoring: is there a good copy of each disk that is less than a day old?
tidemark status --max-age 24h
# A mirror that was removed on purpose is missing until it is forgotten.
tidemark status --forget /backup/old.img`,
		exits: []exitCode{exitDamaged, exitStale},
		args: func(_ *cobra.Command, args []string) error {
			switch {
			case f.maxAge < 0:
				return errors.New("--max-age must not be negative")
			case f.forget && (len(args) == 0 || f.maxAge > 0):
				return errors.New("--forget takes the DSTs to forget, and no --max-age")
			}
			return nil
		},
		run: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args, g) },
	}.build()
	cmd.Flags().DurationVar(&f.maxAge, "max-age", 0, "end with 9, and say why, when a copy is older than this `time` (as 24h) or a mirror is not well")
	cmd.Flags().BoolVar(&f.forget, "forget", false, "take the DSTs from the list of mirrors; they stay as they are, and their next run lists them again")
	addJSON(cmd, &f.asJSON, "one object a line for each mirror")
	cmd.ValidArgsFunction = g.completeMirrors
	return cmd
}

func (f *statusFlags) run(cmd *cobra.Command, args []string, g *globals) error {
	if f.forget {
		var errs []error
		for _, path := range args {
			errs = append(errs, target.Forget(path, g.stateDir))
		}
		return errors.Join(errs...)
	}
	all, err := g.look(cmd.Context(), args, f.maxAge > 0)
	out := cmd.OutOrStdout()
	switch {
	case f.asJSON:
		err = errors.Join(err, f.printJSON(out, all))
	case f.maxAge > 0:
	case len(args) == 0:
		err = errors.Join(err, printOverview(out, all))
	default:
		err = errors.Join(err, printStatus(out, all))
	}
	if err != nil || f.maxAge == 0 {
		return err
	}
	return f.judge(out, all, g)
}

// look returns how the mirrors are: all that are known here, or those at the paths. With
// judge a path that has none is one that is missing, and otherwise an error, when all others
// have been looked at.
func (g *globals) look(ctx context.Context, paths []string, judge bool) (all []status.Seen, err error) {
	o := status.Options{StateDir: g.stateDir, Track: g.trackOptions()}
	if len(paths) == 0 {
		return status.Mirrors(ctx, o)
	}
	var errs []error
	for _, name := range paths {
		var m status.Seen
		path, err := names.Target(ctx, name)
		if err == nil {
			m, err = status.Look(ctx, path, o)
		}
		if err == nil || judge && m.Condition != "" {
			all = append(all, m)
		} else {
			errs = append(errs, err)
		}
	}
	return all, errors.Join(errs...)
}

// completeMirrors completes arguments with the mirrors that are known here, and files.
func (g *globals) completeMirrors(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	if g.resolve(cmd) != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return target.Paths(g.stateDir), cobra.ShellCompDirectiveDefault
}

// judge tells what is wrong for --max-age.
func (f *statusFlags) judge(w io.Writer, all []status.Seen, g *globals) error {
	lines, bad, oldest := []string{}, 0, time.Duration(0)
	for _, m := range all {
		problems := f.problems(m)
		for _, text := range problems {
			lines = append(lines, m.Path+": "+text)
		}
		bad += min(len(problems), 1)
		oldest = max(oldest, time.Since(m.Time))
	}
	switch {
	case len(all) == 0:
		return hinted{fmt.Errorf("status: none is known in %s: %w", g.stateDir, errStale), "is the state folder the right one?"}
	case bad == 0:
		lines = append(lines, fmt.Sprintf("mirrors: %d, all complete; the oldest copy is of %s ago", len(all), ago(oldest)))
	}
	if !f.asJSON {
		if _, err := fmt.Fprintln(w, strings.Join(lines, "\n")); err != nil {
			return err
		}
	}
	if bad > 0 {
		return told{fmt.Errorf("status: %d of %d: %w", bad, len(all), errStale)}
	}
	return nil
}

// problems lists what is wrong with a mirror.
func (f *statusFlags) problems(m status.Seen) (why []string) {
	switch m.Condition {
	case status.Complete:
	case status.Pending, status.Failed:
		if m.Running == nil {
			why = append(why, string(m.Condition)+": "+m.Why)
		}
	default:
		why = append(why, string(m.Condition)+": "+m.Why)
	}
	if old := time.Since(m.Time); !m.Time.IsZero() && old > f.maxAge {
		why = append(why, fmt.Sprintf("too old: a copy of %s, %s ago", stamp(m.Time), ago(old)))
	}
	return why
}

func (f *statusFlags) printJSON(w io.Writer, all []status.Seen) error {
	for _, m := range all {
		s := mirrorStatus{
			Path: m.Path, Condition: word(m), Reason: m.Why, Pending: m.Pending,
			Next: m.Next, NextReason: m.NextWhy, Running: m.Running,
		}
		if f.maxAge > 0 {
			s.Problems = f.problems(m)
		}
		if m.Version > 0 {
			s.State = &m.State
		}
		if !m.Time.IsZero() {
			seconds := math.Round(time.Since(m.Time).Seconds())
			s.AgeSeconds = &seconds
		}
		if err := printJSON(w, s); err != nil {
			return err
		}
	}
	return nil
}

// word is how a mirror is, in one word.
func word(m status.Seen) string {
	if m.Running != nil {
		return "running"
	}
	return string(m.Condition)
}

// printOverview prints a line for each mirror, and then what is to be said of some.
func printOverview(w io.Writer, all []status.Seen) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "no mirror is known here: each is listed from its first run on")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "target\tsource\tage\tstate\tnext run\tlast run")
	var more []string
	for _, m := range all {
		old, last := "-", "-"
		if !m.Time.IsZero() {
			old = ago(time.Since(m.Time))
		}
		if n := len(m.Runs); n > 0 {
			last = brief(m.Runs[n-1].Outcome)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", m.Path, cmp.Or(m.Source.Path, "-"), old, word(m), nextWord(m), last)
		for _, text := range []string{runningText(m.Running), m.Why, m.NextWhy} {
			if text != "" {
				more = append(more, m.Path+": "+text)
			}
		}
	}
	if err := table.Flush(); err != nil || len(more) == 0 {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s\n", strings.Join(more, "\n"))
	return err
}

// nextWord is what the next run reads, in a word or two.
func nextWord(m status.Seen) string {
	switch m.Next {
	case status.NextChanges:
		return "what changed"
	case status.NextRest:
		return "the rest"
	case status.NextAll:
		return "all"
	}
	return "-"
}

// printStatus prints all that people are shown of each mirror.
func printStatus(w io.Writer, all []status.Seen) error {
	for i, m := range all {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if err := printMirror(w, m); err != nil {
			return err
		}
	}
	return nil
}

func printMirror(w io.Writer, m status.Seen) error {
	if _, err := fmt.Fprintf(w, "%s: %s\n", m.Path, completeness(m.Known, m.Running != nil)); err != nil {
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if m.Running != nil {
		fmt.Fprintf(table, "  running\t%s\n", runningText(m.Running))
	}
	if m.Condition != status.Complete && m.Condition != status.Incomplete {
		fmt.Fprintf(table, "  %s\t%s\n", m.Condition, m.Why)
	}
	fmt.Fprintf(table, "  source\t%s\n", m.Source.Path)
	fmt.Fprintf(table, "  size\t%s, in blocks of %s\n", size(m.Size), size(m.BlockSize))
	fmt.Fprintf(table, "  mark\t%s\n", markText(m))
	if !m.Verified.IsZero() {
		fmt.Fprintf(table, "  verified\t%s, %s ago\n", stamp(m.Verified), ago(time.Since(m.Verified)))
	}
	if err := table.Flush(); err != nil || len(m.Runs) == 0 {
		return err
	}
	fmt.Fprintln(w)
	table = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "run\ttracker\tview\tread\twritten\tfrozen\ttook\toutcome")
	for _, r := range m.Runs[max(0, len(m.Runs)-statusRuns):] {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%.1f ms\t%s\t%s\n", r.Time.Local().Format(runFormat), r.Tracker, r.View,
			size(r.Read), size(r.Written), r.FrozenMS, time.Duration(r.TookMS*float64(time.Millisecond)).Round(time.Millisecond), brief(r.Outcome))
	}
	return table.Flush()
}

// completeness says of what a mirror is the copy.
func completeness(m target.Known, running bool) string {
	switch {
	case !m.Complete && running:
		return "incomplete: its first copy is being made"
	case !m.Complete:
		return fmt.Sprintf("incomplete: %s of %s copied; run mirror again", size(m.Copied), size(m.Size))
	case m.Pending:
		return "between the copy of " + stamp(m.Time) + " and a newer one that is committed; the next mirror run finishes it, and so does \"tidemark recover\""
	}
	return "a copy of " + stamp(m.Time)
}

// markText says from where the next run goes on.
func markText(m status.Seen) string {
	switch {
	case m.Next == status.NextAll && m.Mark == "":
		return "none: the next run reads all of the source"
	case m.Next == status.NextAll:
		return m.NextWhy + "; the next run reads all (" + m.Mark + ")"
	case m.Next == status.NextUnknown && m.NextWhy != "":
		return m.Mark + " (whether it is good cannot be told: " + m.NextWhy + ")"
	}
	return cmp.Or(m.Mark, "none")
}

func runningText(r *running.Run) string {
	if r == nil {
		return ""
	}
	doing := map[string]string{"begin": "beginning", "verify": "checking the target", "copy": "copying", "freeze": "freezing", "commit": "committing"}
	text := fmt.Sprintf("a run is in progress (pid %d, %s", r.PID, cmp.Or(doing[r.Phase], r.Phase))
	if r.Total > 0 {
		text += fmt.Sprintf(", %d %% of %s", r.Done*100/r.Total, size(r.Total))
	}
	return text + ")"
}

// runFormat is how people are told a time that others are close to.
const runFormat = time.DateTime + ".000 MST"

// stamp writes a time for people, with its zone.
func stamp(t time.Time) string { return words.Time(t) }

// ago says how long something is ago.
func ago(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// brief is the first line of a text, cut to what a table has room for.
func brief(text string) string {
	text, _, more := strings.Cut(text, "\n")
	if runes := []rune(text); len(runes) > statusOutcome {
		text, more = string(runes[:statusOutcome]), true
	}
	if more {
		text += "…"
	}
	return text
}
