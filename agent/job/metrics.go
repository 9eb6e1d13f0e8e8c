package job

import (
	"bytes"
	"fmt"
	"os"
	"time"

	"tidemark/linux/atomicfile"
)

// A metric is one of the numbers that node_exporter reads, of each job.
type metric struct {
	name, kind, help string
	value            func(Job, Record) (float64, bool) // false where there is none
}

func gauge(name, help string, value func(Job, Record) (float64, bool)) metric {
	return metric{name, "gauge", help, value}
}

func counter(name, help string, value func(Record) uint64) metric {
	return metric{name, "counter", help, func(_ Job, r Record) (float64, bool) { return float64(value(r)), true }}
}

// ran is a value that a job has once it has run.
func ran(value func(Record) float64) func(Job, Record) (float64, bool) {
	return func(_ Job, r Record) (float64, bool) { return value(r), r.Runs > 0 }
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func metrics() []metric {
	return []metric{
		gauge("last_success_timestamp_seconds", "When the last run that made a copy began; the copy is no older. Its age is time() less this.",
			func(_ Job, r Record) (float64, bool) { return seconds(r.LastSuccess), !r.LastSuccess.IsZero() }),
		gauge("last_run_timestamp_seconds", "When the last run began.", ran(func(r Record) float64 { return seconds(r.Began) })),
		gauge("last_run_success", "Whether the last run made a copy: 1 or 0.", ran(func(r Record) float64 {
			if r.Outcome == OK {
				return 1
			}
			return 0
		})),
		gauge("last_run_duration_seconds", "How long the last run took.", ran(func(r Record) float64 { return r.TookMS / 1000 })),
		gauge("last_run_read_bytes", "What the last run read from its sources.", ran(func(r Record) float64 { return float64(r.Read) })),
		gauge("last_run_written_bytes", "What the last run wrote to its targets.", ran(func(r Record) float64 { return float64(r.Written) })),
		gauge("last_run_frozen_seconds", "For how long filesystems were frozen in the last run.", ran(func(r Record) float64 { return r.FrozenMS / 1000 })),
		gauge("up_to_date", "Whether, when this file was written, the last run had made a copy and that was not older than max-age: 1 or 0.", upToDate),
		gauge("max_age_seconds", "How old the copy may become before the job is late.",
			func(j Job, _ Record) (float64, bool) { return j.MaxAge.Seconds(), j.MaxAge > 0 }),
		counter("runs_total", "Runs that ended, in any way.", func(r Record) uint64 { return r.Runs }),
		counter("failures_total", "Runs that failed.", func(r Record) uint64 { return r.Failures }),
	}
}

func upToDate(j Job, r Record) (float64, bool) {
	if r.Outcome == OK && lateSince(j, r, watch{}, time.Now()).IsZero() {
		return 1, true
	}
	return 0, true
}

// WriteMetrics replaces the file of metrics, if there is one, by those of all jobs. An age
// is not in it: it would stand still with the file.
func (s Store) WriteMetrics(c *Config) error {
	if c.Metrics == "" {
		return nil
	}
	unlock, err := s.lock("_metrics", true) // the last that writes has read all
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	defer unlock()
	records := make([]Record, len(c.Jobs))
	for i, j := range c.Jobs {
		// A damaged one counts as none; the job says so when it runs.
		records[i], _ = s.Record(j.Name)
	}
	err = atomicfile.Write(c.Metrics, atomicfile.Options{Mode: 0o644}, func(f *os.File) error {
		_, err := f.Write(exposition(c.Jobs, records))
		return err
	})
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

// exposition is the text format of Prometheus. The label is a job's name, which has
// nothing to escape; "job" would collide with a label of Prometheus' own.
func exposition(jobs []Job, records []Record) []byte {
	var b bytes.Buffer
	for _, m := range metrics() {
		var lines bytes.Buffer
		for i, j := range jobs {
			if v, ok := m.value(j, records[i]); ok {
				fmt.Fprintf(&lines, "tidemark_job_%s{name=%q} %v\n", m.name, j.Name, v)
			}
		}
		if lines.Len() > 0 {
			fmt.Fprintf(&b, "# HELP tidemark_job_%s %s\n# TYPE tidemark_job_%s %s\n%s", m.name, m.help, m.name, m.kind, lines.Bytes())
		}
	}
	return b.Bytes()
}
