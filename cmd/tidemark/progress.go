package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"tidemark/words"
)

// plainInterval is the least time between two progress lines where there is no
// terminal to draw on.
const plainInterval = 10 * time.Second

// progress shows how far a run is. It prints from its methods alone, and starts
// no goroutine: while a filesystem is frozen, on which stderr may lie, package
// transfer calls none, and nothing is printed.
type progress interface {
	// Note tells one thing.
	Note(text string)
	// Begin starts a phase of total bytes, -1 if that is not known, and ends the one
	// before.
	Begin(phase string, total int64)
	// Done says how many bytes of the phase are done.
	Done(n int64)
	// Stored says how many bytes a vault has stored for the run. The next Done shows it.
	Stored(n int64)
	// End ends the phase.
	End()
}

// newProgress draws a bar on a terminal, prints plain lines elsewhere, and says
// nothing when quiet.
func newProgress(w io.Writer, quiet bool) progress {
	if quiet {
		return silent{}
	}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		return &bars{w: w}
	}
	return &lines{w: w, now: time.Now}
}

type silent struct{}

func (silent) Note(string)         {}
func (silent) Begin(string, int64) {}
func (silent) Done(int64)          {}
func (silent) Stored(int64)        {}
func (silent) End()                {}

// noting is a progress that remembers what it was told, and does not show again what the
// run before told.
type noting struct {
	progress
	notes, before []string
}

func (n *noting) Note(text string) {
	n.notes = append(n.notes, text)
	if !slices.Contains(n.before, text) {
		n.progress.Note(text)
	}
}

// bars draws a bar with rate and time left.
type bars struct {
	w     io.Writer
	bar   *progressbar.ProgressBar
	phase string
}

func (d *bars) Note(text string) {
	if d.bar != nil {
		_ = d.bar.Clear() // a terminal that went away is no failure of the copy
	}
	fmt.Fprintln(d.w, text)
}

func (d *bars) Begin(phase string, total int64) {
	d.End()
	d.phase = phase
	d.bar = progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(d.w),
		progressbar.OptionSetDescription(fmt.Sprintf("%-10s", phase)),
		progressbar.OptionShowBytes(true),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionSetSpinnerChangeInterval(0),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionUseANSICodes(true), // clears all of the line, and the ^C that the terminal has put behind the bar
		progressbar.OptionSetWidth(20),
	)
}

func (d *bars) Stored(n int64) {
	if d.bar != nil && n > 0 {
		d.bar.Describe(fmt.Sprintf("%-10s (%s stored)", d.phase, size(n)))
	}
}

func (d *bars) Done(n int64) {
	if d.bar != nil {
		_ = d.bar.Set64(n)
	}
}

func (d *bars) End() {
	if d.bar != nil {
		_ = d.bar.Finish()
		d.bar = nil
	}
}

// lines prints a line now and then, for logs.
type lines struct {
	w             io.Writer
	now           func() time.Time
	phase         string
	done, total   int64
	stored        int64
	started, last time.Time
}

func (d *lines) Note(text string) { fmt.Fprintln(d.w, text) }

func (d *lines) Begin(phase string, total int64) {
	d.End()
	d.phase, d.total, d.done = phase, total, 0
	d.started = d.now()
	d.last = d.started
}

func (d *lines) Stored(n int64) { d.stored = n }

func (d *lines) Done(n int64) {
	d.done = n
	if now := d.now(); d.phase != "" && now.Sub(d.last) >= plainInterval {
		d.last = now
		d.print(now)
	}
}

// End prints the sum of a phase that was long enough to have printed before.
func (d *lines) End() {
	if d.phase != "" && !d.last.Equal(d.started) {
		d.print(d.now())
	}
	d.phase = ""
}

func (d *lines) print(now time.Time) {
	rate := int64(float64(d.done) / max(now.Sub(d.started).Seconds(), 0.001))
	of := ""
	if d.total >= 0 {
		of = " of " + size(d.total)
	}
	stored := ""
	if d.stored > 0 {
		stored = ", " + size(d.stored) + " stored"
	}
	fmt.Fprintf(d.w, "%s: %s%s, %s/s%s\n", d.phase, size(d.done), of, size(rate), stored)
}

// size writes a number of bytes for people.
func size(n int64) string {
	if n < 0 {
		return "-" + size(-n)
	}
	return words.Size(n)
}
