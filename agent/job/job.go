// Package job owns jobs: mirrors that are made again and again, as a file describes them.
//
// For most uses, [Load] the file, and [Store.Run] a job of it. [Store.Late] looks for jobs
// whose last copy is too old.
//
// The file is TOML. All that is wrong in it is told at once, each with its line; a key that
// is not known is refused. What a job does is not known here: Run is given a function.
//
// Of each job a record is kept (Record), from which the metrics are made; it is written
// whole or not at all. A job does not run twice at once (ErrBusy). Functions may be called
// by several processes at once.
package job

import (
	"time"
)

// Job is one entry of the file: sources that are copied at one instant, and when.
type Job struct {
	Name  string
	Line  int // of its table in the file
	Pairs []Pair

	Tracker, View string        // "" is auto
	BytesPerSec   int64         // 0 is no limit
	Whole         bool          // copy the other devices of a filesystem as well
	ForcePart     bool          // copy a part of a filesystem
	MaxFreeze     time.Duration // 0 is what a run allows by itself
	PreHook       string
	PostHook      string
	HookTimeout   time.Duration // 0 is what hooks have by themselves

	Schedule     string        // a calendar expression of systemd; "" for a job that others start
	ScheduleLine int           // of the file
	Jitter       time.Duration // the longest random delay of a run
	MaxAge       time.Duration // of the last copy, until the job is late; 0 is never

	Notify Notify
}

// Pair names a source and its target.
type Pair struct {
	Source string `json:"source"`
	Target string `json:"target"`
}

// Config is what a file of jobs says.
type Config struct {
	Path    string
	Metrics string // the file that is written for node_exporter; "" for none
	Jobs    []Job  // in the order of the file
}

// Find returns the job of a name.
func (c *Config) Find(name string) (Job, bool) {
	for _, j := range c.Jobs {
		if j.Name == name {
			return j, true
		}
	}
	return Job{}, false
}
