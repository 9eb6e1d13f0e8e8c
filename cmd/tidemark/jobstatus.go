package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tidemark/agent/job"
	"tidemark/agent/timer"
)

// listedJob is what "job list" says of one.
type listedJob struct {
	Name     string     `json:"name"`
	Pairs    []job.Pair `json:"pairs"`
	Schedule string     `json:"schedule"` // "" for none
	Enabled  bool       `json:"enabled"`
}

func newJobList(g *globals) *cobra.Command {
	var asJSON bool
	cmd := command{
		use: "list", short: "List the jobs of the file",
		example: "tidemark job list",
		args:    cobra.NoArgs,
		run: func(cmd *cobra.Command, _ []string) error {
			c, err := g.jobs()
			if err != nil {
				return err
			}
			return printJobs(cmd.OutOrStdout(), c, asJSON)
		},
	}.build()
	addJSON(cmd, &asJSON, "one object a line for each job")
	return cmd
}

func printJobs(w io.Writer, c *job.Config, asJSON bool) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if !asJSON && len(c.Jobs) > 0 {
		fmt.Fprintln(table, "job\tsource\ttarget\tschedule\tenabled")
	}
	for _, j := range c.Jobs {
		enabled, _ := timer.System{}.Enabled(timerOf(j))
		if asJSON {
			if err := printJSON(w, listedJob{j.Name, j.Pairs, j.Schedule, enabled}); err != nil {
				return err
			}
			continue
		}
		name, schedule, is := j.Name, cmp.Or(j.Schedule, "-"), yesNo(enabled)
		for _, p := range j.Pairs {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", name, p.Source, p.Target, schedule, is)
			name, schedule, is = "", "", "" // once for all its pairs
		}
	}
	return table.Flush()
}

func yesNo(is bool) string {
	if is {
		return "yes"
	}
	return "no"
}

// The states of a job, the first that is true.
const (
	jobRunning = "running"
	jobLate    = "late"
	jobFailed  = "failed"
	jobNew     = "never ran"
	jobOK      = "ok"
)

// jobStatus is what "job status" says of one.
type jobStatus struct {
	Name    string     `json:"name"`
	State   string     `json:"state"`
	Running bool       `json:"running"`
	Late    bool       `json:"late"`
	Failed  bool       `json:"failed"` // the last run that ended
	Enabled bool       `json:"enabled"`
	Next    *time.Time `json:"next,omitempty"` // absent where it is not known
	job.Record
}

func newJobStatus(g *globals) *cobra.Command {
	var asJSON bool
	cmd := command{
		use: "status [NAME...]", short: "Show how jobs stand",
		long: `Shows of each job, or of those named: when it ran last and how that went, of when its last copy is, when it runs next, and whether it is late: its last copy is older than its max-age. It ends with exit code 9 when one is late or its last run failed.`,
		example: `tidemark job status
# for monitoring
tidemark job status --json`,
		exits: []exitCode{exitStale},
		args:  cobra.ArbitraryArgs,
		run: func(cmd *cobra.Command, args []string) error {
			all, err := g.jobStatus(cmd.Context(), args)
			if err != nil {
				return err
			}
			return errors.Join(printJobStatus(cmd.OutOrStdout(), all, asJSON), stale(all))
		},
	}.build()
	addJSON(cmd, &asJSON, "one object a line for each job")
	return cmd
}

func (g *globals) jobStatus(ctx context.Context, names []string) ([]jobStatus, error) {
	c, err := g.jobs()
	if err != nil {
		return nil, err
	}
	jobs := c.Jobs
	if len(names) > 0 {
		jobs = nil
	}
	for _, name := range names {
		j, ok := c.Find(name)
		if !ok {
			return nil, fmt.Errorf("%s: %w: %s", g.config, job.ErrUnknown, name)
		}
		jobs = append(jobs, j)
	}
	// Without systemd, as in a rescue system, nothing is known of the next runs.
	next, _ := timer.Next(ctx)
	var all []jobStatus
	for _, j := range jobs {
		s, err := statusOfJob(g.jobStore(), j)
		if err != nil { // a record that is damaged; the next run begins it anew
			s.State, s.Failed, s.Outcome = jobFailed, true, err.Error()
		}
		if at, ok := next[j.Name]; ok {
			s.Next = &at
		}
		all = append(all, s)
	}
	return all, nil
}

func statusOfJob(store job.Store, j job.Job) (jobStatus, error) {
	s := jobStatus{Name: j.Name, Running: store.Running(j.Name)}
	s.Enabled, _ = timer.System{}.Enabled(timerOf(j))
	var err error
	if s.Record, err = store.Record(j.Name); err != nil {
		return s, err
	}
	since, err := store.LateSince(j, time.Now())
	if err != nil {
		return s, err
	}
	s.Late, s.Failed = !since.IsZero(), s.Runs > 0 && !s.Running && s.Outcome != job.OK
	switch s.State = jobOK; {
	case s.Running:
		s.State = jobRunning
	case s.Late:
		s.State = jobLate
	case s.Failed:
		s.State = jobFailed
	case s.Runs == 0:
		s.State = jobNew
	}
	return s, nil
}

// stale is the error that a job is late or has failed, and nil when none is.
func stale(all []jobStatus) error {
	var bad []string
	for _, s := range all {
		switch {
		case s.Late:
			bad = append(bad, s.Name+" is late")
		case s.Failed:
			bad = append(bad, s.Name+" failed")
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return told{fmt.Errorf("%w: %s", errStale, strings.Join(bad, ", "))}
}

func printJobStatus(w io.Writer, all []jobStatus, asJSON bool) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if !asJSON && len(all) > 0 {
		fmt.Fprintln(table, "job\tstate\tcopy of\tlast run\ttook\tnext run")
	}
	for _, s := range all {
		if asJSON {
			if err := printJSON(w, s); err != nil {
				return err
			}
			continue
		}
		next := "not known"
		switch {
		case s.Next != nil:
			next = stamp(*s.Next)
		case !s.Enabled:
			next = "not enabled"
		}
		took := time.Duration(s.TookMS * float64(time.Millisecond)).Round(time.Millisecond)
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%v\t%s\n", s.Name, s.State, orNone(s.LastSuccess), orNone(s.Began), took, next)
	}
	if err := table.Flush(); err != nil || asJSON {
		return err
	}
	for _, s := range all {
		if s.Failed {
			if _, err := fmt.Fprintf(w, "\n%s: its last run failed: %s\n", s.Name, s.Outcome); err != nil {
				return err
			}
		}
	}
	return nil
}

func orNone(t time.Time) string {
	if t.IsZero() {
		return "none"
	}
	return stamp(t)
}
