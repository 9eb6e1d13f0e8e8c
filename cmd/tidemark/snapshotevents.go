package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"tidemark/snapshot"
	"tidemark/words"
)

// snapshotEvent is one line of "snapshot events".
type snapshotEvent struct {
	Time     time.Time `json:"time"`
	Snapshot string    `json:"snapshot"`
	Origin   string    `json:"origin"`
	Event    string    `json:"event"` // "low-space", "grown", "lost", "incremental", "destroyed"
	Used     int64     `json:"used"`
	Total    int64     `json:"total"`
	LeftS    float64   `json:"left_s,omitempty"` // seconds until the store is full, at the rate of late
	Reason   string    `json:"reason,omitempty"`
}

func (e snapshotEvent) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, e)
	}
	text := fmt.Sprintf("%s  %s %s: %s, %s of %s used", words.Time(e.Time), e.Snapshot, e.Origin, e.Event, size(e.Used), size(e.Total))
	if e.LeftS > 0 {
		text += fmt.Sprintf(", full in %v at this rate", time.Duration(e.LeftS*float64(time.Second)).Round(time.Second))
	}
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	_, err := fmt.Fprintln(w, text)
	return err
}

// watcher follows a snapshot.
type watcher struct {
	g         *globals
	name      string
	low       int // percent of a store from which on it is told
	step, max int64
	tell      func(snapshotEvent) error
	before    map[string]sample // by volume
}

// sample is how full a store was.
type sample struct {
	at   time.Time
	used int64
	low  bool // it was told
	lost bool
}

func newSnapshotEvents(g *globals) *cobra.Command {
	var follow, asJSON bool
	var step, limit byteSize
	var low int
	var every time.Duration
	cmd := command{
		use: "events NAME", short: "Tell when a store gets full, or the snapshot is lost",
		long: `Tells what there is to tell of a snapshot: low-space when a store is --low percent full, with the time that is left at the rate of late; lost, with the reason; and with --follow also destroyed, and incremental (see "tidemark snapshot to-incremental"), upon which it ends.

With --auto-grow it makes a store that is a file larger by STEP whenever it is low, up to --limit. That works only as long as this command runs: have a service run it. The kernel gives no warning, so that a store is looked at every --interval; keep more room free than is written in that time.`,
		example: `tidemark snapshot events snap1
tidemark snapshot events snap1 --follow --auto-grow 1G --limit 20G`,
		exits: []exitCode{exitInterrupted, exitTerminated},
		args:  cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			if step > 0 && (!follow || limit == 0) {
				return usageError{errors.New("--auto-grow needs --follow and --limit")}
			}
			w := &watcher{
				g: g, name: args[0], low: low, step: int64(step), max: int64(limit), before: map[string]sample{},
				tell: func(e snapshotEvent) error { return e.print(cmd.OutOrStdout(), asJSON) },
			}
			return w.run(cmd.Context(), follow, every)
		},
	}.build()
	cmd.Flags().BoolVar(&follow, "follow", false, "go on until the snapshot is gone")
	cmd.Flags().IntVar(&low, "low", 80, "`percent` of a store from which on it is low")
	cmd.Flags().DurationVar(&every, "interval", time.Second, "how often stores are looked at")
	addSize(cmd, &step, "auto-grow", "by how much a store that is low grows")
	addSize(cmd, &limit, "limit", "how large --auto-grow makes a store at most")
	addJSON(cmd, &asJSON, "one object a line")
	return cmd
}

func (w *watcher) run(ctx context.Context, follow bool, every time.Duration) error {
	for first := true; ; first = false {
		s, err := snapshot.Find(w.g.snapshotOptions(), w.name)
		if errors.Is(err, snapshot.ErrNotFound) && !first {
			return w.tell(snapshotEvent{Time: time.Now().UTC(), Snapshot: w.name, Event: "destroyed"})
		}
		if err != nil {
			return err
		}
		if s.Incremental {
			return w.tell(snapshotEvent{Time: time.Now().UTC(), Snapshot: w.name, Event: "incremental"})
		}
		st, err := s.Status()
		if err != nil {
			return err
		}
		for _, v := range st.Volumes {
			if err := w.look(ctx, s, v); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		if err := s.Watch(ctx, every); err != nil {
			return err
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
	}
}

// look tells of one volume what is new, and grows its store.
func (w *watcher) look(ctx context.Context, s *snapshot.Snapshot, v snapshot.VolumeStatus) error {
	now := sample{at: time.Now(), used: v.Used, lost: v.Lost != "", low: v.Lost == "" && v.Used*100 >= v.Total*int64(w.low)}
	before, known := w.before[v.Name]
	w.before[v.Name] = now
	e := snapshotEvent{Time: now.at.UTC(), Snapshot: s.Name, Origin: v.Name, Used: v.Used, Total: v.Total, Reason: v.Lost}
	switch {
	case now.lost && !before.lost:
		e.Event = "lost"
		return w.tell(e)
	case !now.low:
		return nil
	case w.step > 0 && v.Total < w.max:
		to := min(v.Total+w.step, w.max)
		if err := s.Grow(ctx, v.Volume, to); err != nil {
			return err
		}
		w.before[v.Name] = sample{at: now.at, used: now.used}
		e.Event, e.Total = "grown", to
		return w.tell(e)
	case before.low:
		return nil
	}
	e.Event = "low-space"
	if took := now.at.Sub(before.at).Seconds(); known && now.used > before.used {
		e.LeftS = float64(v.Total-v.Used) * took / float64(now.used-before.used)
	}
	return w.tell(e)
}
