package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidemark/agent/job"
	"tidemark/agent/timer"
	"tidemark/transfer"
	"tidemark/transfer/pairs"
)

// defaultConfig is where the jobs of a machine stand.
const defaultConfig = "/etc/tidemark/tidemark.toml"

const jobLong = `A job is a mirror that is made again and again. All of a machine's jobs stand in one file of TOML, ` + defaultConfig + ` (--config):

[job.NAME] begins one. Its keys: source and target, or pairs = [{source = "…", target = "…"}, …] that are copied at the same instant; tracker, view, bwlimit, max-freeze, pre-hook, post-hook, hook-timeout, whole and force-part (true or false), as the options of "tidemark mirror"; schedule, a calendar expression of systemd.time(7), as "daily" or "Mon..Fri 02:30", at which "tidemark job enable" has it run; jitter, the longest random delay of a run; max-age, the age of the last copy at which the job is late.

on-success, on-failure and on-late say who is told: a shell command, or a URL that is fetched ("POST https://…" sends the message). A command finds TIDEMARK_JOB, TIDEMARK_EVENT (success, failure or late) and TIDEMARK_MESSAGE in its environment. notify-timeout bounds each, 30s by default. They stand in a job, or above all jobs for those that have none. That nobody could be told is said, and fails no job.

metrics, above all jobs, is a file for the textfile collector of Prometheus' node_exporter, as "/var/lib/prometheus/node-exporter/tidemark.prom".

Times have a unit, as "90m"; sizes too, as "100MB" or "64MiB". A key that is not known is refused.`

func newJob(g *globals) *cobra.Command {
	cmd := command{
		use: "job", short: "Make mirrors by schedule, as a file describes them", long: jobLong,
		example: `# Is the file right, and when will the jobs run?
tidemark job check
# Run one now, then every time its schedule says
tidemark job run srv
tidemark job enable srv
tidemark job status`,
	}.build(newJobCheck(g), newJobList(g), newJobRun(g), newJobStatus(g), newJobEnable(g), newJobDisable(), newJobLate(g))
	cmd.PersistentFlags().StringVar(&g.config, "config", defaultConfig, "`file` of jobs")
	return cmd
}

func (g *globals) jobStore() job.Store { return job.Store{Dir: filepath.Join(g.stateDir, "jobs")} }

// jobs loads the file of jobs.
func (g *globals) jobs() (*job.Config, error) {
	c, err := job.Load(g.config)
	if errors.Is(err, fs.ErrNotExist) {
		err = hinted{err, `write it ("tidemark job --help" lists the keys), or name another with --config`}
	}
	return c, err
}

// findJob loads the file of jobs and finds one in it.
func (g *globals) findJob(name string) (*job.Config, job.Job, error) {
	c, err := g.jobs()
	if err != nil {
		return nil, job.Job{}, err
	}
	j, ok := c.Find(name)
	if !ok {
		return nil, j, fmt.Errorf("%s: %w: %s", g.config, job.ErrUnknown, name)
	}
	return c, j, nil
}

func timerOf(j job.Job) timer.Timer {
	return timer.Timer{Job: j.Name, Schedule: j.Schedule, Jitter: j.Jitter, MaxAge: j.MaxAge > 0}
}

// checkedJobs is what "job check" says of a file in which nothing is wrong.
type checkedJobs struct {
	File     string       `json:"file"`
	Jobs     []checkedJob `json:"jobs"`
	Warnings []string     `json:"warnings"`
}

// checkedJob is when a job runs.
type checkedJob struct {
	Name string   `json:"name"`
	Next []string `json:"next"`           // as systemd-analyze writes times; empty without a schedule
	Note string   `json:"note,omitempty"` // why Next is empty
}

func newJobCheck(g *globals) *cobra.Command {
	var asJSON bool
	cmd := command{
		use: "check", short: "Check the file of jobs",
		long: `Says all that is wrong in the file of jobs, each with its line, and when each job runs next. A source that is not there, a timer that has another schedule than the file, and one whose job is gone are warnings.

Schedules are judged by systemd-analyze(1), where that is installed.`,
		example: "tidemark job check\ntidemark job check --config ./tidemark.toml",
		args:    cobra.NoArgs,
		run: func(cmd *cobra.Command, _ []string) error {
			c, err := g.jobs()
			if err != nil {
				return err
			}
			checked, err := checkJobs(cmd.Context(), c)
			if err == nil && asJSON {
				return printJSON(cmd.OutOrStdout(), checked)
			}
			return errors.Join(checked.print(cmd.OutOrStdout(), cmd.ErrOrStderr(), err == nil), err)
		},
	}.build()
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

// checkSchedules is how many times of each schedule are shown.
const checkSchedules = 3

func checkJobs(ctx context.Context, c *job.Config) (checkedJobs, error) {
	checked := checkedJobs{File: c.Path, Jobs: []checkedJob{}, Warnings: []string{}}
	var faults job.Faults
	for _, j := range c.Jobs {
		is := checkedJob{Name: j.Name, Next: []string{}, Note: "when it is started by hand or by others"}
		if j.Schedule != "" {
			times, err := timer.Calendar(ctx, j.Schedule, checkSchedules)
			switch {
			case errors.Is(err, timer.ErrNoSystemd):
				is.Note = "schedule not checked: " + err.Error()
			case err != nil:
				faults = append(faults, job.Fault{File: c.Path, Line: j.ScheduleLine, Text: fmt.Sprintf("job %s: schedule: %v", j.Name, err)})
				continue
			default:
				is.Next, is.Note = times, ""
			}
		}
		checked.Jobs = append(checked.Jobs, is)
		for _, text := range doubts(j) {
			checked.Warnings = append(checked.Warnings, fmt.Sprintf("%s:%d: warning: job %s: %s", c.Path, j.Line, j.Name, text))
		}
	}
	names, err := timer.System{}.Jobs()
	if err != nil {
		return checked, err
	}
	for _, name := range names {
		if _, ok := c.Find(name); !ok {
			checked.Warnings = append(checked.Warnings, fmt.Sprintf("%s: warning: there is a timer of job %s, which is not in the file: \"tidemark job disable %s\" removes it", c.Path, name, name))
		}
	}
	if len(faults) > 0 {
		return checked, faults
	}
	return checked, nil
}

func (c checkedJobs) print(out, warn io.Writer, well bool) error {
	for _, j := range c.Jobs {
		when := j.Note
		if len(j.Next) > 0 {
			when = "next " + strings.Join(j.Next, ", ")
		}
		fmt.Fprintf(out, "%s: %s\n", j.Name, when)
	}
	for _, text := range c.Warnings {
		fmt.Fprintln(warn, text)
	}
	if !well {
		return nil
	}
	_, err := fmt.Fprintf(out, "%s: nothing wrong (jobs: %d)\n", c.File, len(c.Jobs))
	return err
}

// doubts is what may be wrong with a job, and may be right another day.
func doubts(j job.Job) []string {
	var all []string
	for _, p := range j.Pairs {
		path := p.Source
		for tag, dir := range map[string]string{"UUID=": "by-uuid/", "PARTUUID=": "by-partuuid/"} {
			if value, ok := strings.CutPrefix(path, tag); ok {
				path = "/dev/disk/" + dir + strings.Trim(value, `"`)
			}
		}
		if !filepath.IsAbs(path) {
			continue // a label: blkid knows
		}
		if _, err := os.Stat(path); err != nil {
			all = append(all, fmt.Sprintf("source %s is not there now", p.Source))
		}
	}
	if enabled, same := (timer.System{}).Enabled(timerOf(j)); enabled && !same {
		all = append(all, fmt.Sprintf("its timer has another schedule: run \"tidemark job enable %s\" again", j.Name))
	}
	return all
}

func newJobRun(g *globals) *cobra.Command {
	var quiet, showHooks, asJSON bool
	cmd := command{
		use: "run NAME", short: "Run a job once",
		long:    `Runs one job of the file, as "tidemark mirror" does, keeps how it went, writes the metrics and tells whom the file names. While a run of a job is under way, another ends with exit code 7 and does nothing. When a copy that the job has made is not there any more, the run is refused: mostly its disk is not mounted, and the one below would be filled.`,
		example: "tidemark job run srv\n# from cron, which mails what is printed\ntidemark job run --quiet srv",
		exits:   append(interruptible(), exitNoConverge, exitRefused, exitBusy, exitDamaged),
		args:    cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			config, j, err := g.findJob(args[0])
			if err != nil {
				return err
			}
			defer outliveReaders()()
			if quiet && asJSON {
				return usagef("--quiet does not go together with --json")
			}
			f, list := mirrorOf(j, quiet, showHooks)
			f.asJSON = asJSON
			c := f.copying(g, list)
			err = g.jobStore().Run(cmd.Context(), config, j, func(ctx context.Context) ([]transfer.Report, error) {
				bar := &noting{progress: newProgress(cmd.ErrOrStderr(), quiet || asJSON), notes: []string{}}
				return c.once(ctx, cmd, bar, nil)
			}, warnTo(cmd))
			return c.stand(cmd.Context(), err)
		},
	}.build()
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing when all is well, for cron; errors as always")
	cmd.Flags().BoolVar(&showHooks, "show-hooks", false, "show what hooks print, after the thaw; of a hook that fails it is shown anyway")
	addJSON(cmd, &asJSON, "one object a line for each pair")
	return cmd
}

func warnTo(cmd *cobra.Command) func(error) {
	return func(err error) { fmt.Fprintf(cmd.ErrOrStderr(), "tidemark: %v\n", err) }
}

// mirrorOf is the command line of "mirror" that does what a job does.
func mirrorOf(j job.Job, quiet, showHooks bool) (*mirrorFlags, []pairs.Pair) {
	var list []pairs.Pair
	for _, p := range j.Pairs {
		list = append(list, pairs.Pair{Source: p.Source, Target: p.Target})
	}
	return &mirrorFlags{copyFlags: copyFlags{
		tracker: choice{value: j.Tracker}, view: choice{value: j.View},
		maxFreeze: cmp.Or(j.MaxFreeze, transfer.DefaultMaxFreeze),
		bwLimit:   byteRate{byteSize(j.BytesPerSec)},
		whole:     j.Whole, forcePart: j.ForcePart,
		preHook: j.PreHook, postHook: j.PostHook, hookTimeout: j.HookTimeout, showHooks: showHooks,
		quiet: quiet,
	}}, list
}

func newJobLate(g *globals) *cobra.Command {
	return command{
		use: "late", short: "Tell of jobs that are late",
		long: `Looks for jobs whose last copy is older than their max-age, and for each calls what on-late says: once, until it has made a copy again. A job that never made one is counted from its first run, or from when this command saw it first. The metrics are written anew. Nothing is printed.

tidemark-late.timer runs it every hour; "tidemark job enable" starts that for a job that has a max-age.`,
		example: "tidemark job late",
		args:    cobra.NoArgs,
		run: func(cmd *cobra.Command, _ []string) error {
			c, err := g.jobs()
			if err != nil {
				return err
			}
			return g.jobStore().Late(cmd.Context(), c, time.Now(), warnTo(cmd))
		},
	}.build()
}
