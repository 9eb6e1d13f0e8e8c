package dmhold

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"tidemark/linux/dm"
	"tidemark/linux/reexec"
)

// What the two processes tell each other, one line each. The end of the caller's lines, at any
// moment, means that it gives up.
const (
	sayGo  = "go"  // to the holder: suspend
	sayCut = "cut" // to the holder: the instant is over
)

// A report is what the holder says.
type report struct {
	At     string        // ready, still, done
	Error  string        `json:",omitempty"` // why the plan ended there
	Kind   string        `json:",omitempty"` // of the error
	Passed time.Duration `json:",omitempty"` // for how long the devices stood still
}

const (
	atReady = "ready" // all is checked
	atStill = "still" // all devices stand still
	atDone  = "done"  // all devices go on
)

// kinds are the errors that have to arrive as what they are.
var kinds = map[string]error{"refused": ErrRefused, "frozen": ErrFrozen, "expired": ErrExpired, "partly": ErrPartly}

func (r *report) fail(err error) {
	r.Error = err.Error()
	for name, kind := range kinds {
		if errors.Is(err, kind) {
			r.Kind = name
		}
	}
}

// told is an error as the holder told it.
type told struct {
	text string
	kind error
}

func (e told) Error() string { return e.text }
func (e told) Unwrap() error { return e.kind }

// Hold carries the plan out. instant, which may be nil, is called once, when all devices stand
// still and nothing is in flight on any of them; its error ends the plan. Hold returns when all
// devices go on and udev has dealt with it, and for how long they stood still. The error wraps
// ErrRefused, ErrFrozen, ErrExpired, ErrPartly, that of instant, or reexec.ErrNoMain.
func Hold(ctx context.Context, p Plan, instant func(context.Context) error) (time.Duration, error) {
	if p.Limit <= 0 {
		return 0, fmt.Errorf("dmhold: %w: no limit", ErrRefused)
	}
	plan, err := json.Marshal(p)
	if err != nil {
		return 0, fmt.Errorf("dmhold: %w", err)
	}
	ctl, err := dm.Open()
	if err != nil {
		return 0, fmt.Errorf("dmhold: %w", err)
	}
	defer ctl.Close()
	defer reexec.LockMemory()()
	h := reexec.Command(Holder)
	to, err := h.StdinPipe()
	if err != nil {
		return 0, fmt.Errorf("dmhold: %w", err)
	}
	defer to.Close()
	from, err := h.StdoutPipe()
	if err != nil {
		return 0, fmt.Errorf("dmhold: %w", err)
	}
	var said strings.Builder
	h.Stderr = &said
	if err := h.Start(); err != nil {
		return 0, fmt.Errorf("dmhold: %w", err)
	}
	passed, err := converse(ctx, to, json.NewDecoder(bufio.NewReader(from)), string(plan), instant)
	to.Close()
	if errors.Is(err, errHolderDied) {
		err = errors.Join(err, h.Wait(), p.letGo(ctl))
		return passed, fmt.Errorf("dmhold: %w", err)
	}
	// It ends when udev has dealt with all.
	if ended := h.Wait(); err == nil && ended != nil {
		err = fmt.Errorf("the devices go on, but: %s: %w", strings.TrimSpace(said.String()), ended)
	}
	if err != nil {
		err = fmt.Errorf("dmhold: %w", err)
	}
	return passed, err
}

var errHolderDied = errors.New("the process that holds the devices died")

func (d Device) resume(ctl *dm.Control) (err error) {
	if d.Hidden {
		_, err = ctl.ResumeHidden(d.Name)
	} else {
		_, err = ctl.Resume(d.Name)
	}
	return err
}

// letGo has the devices go on that a dead holder has left suspended.
func (p Plan) letGo(ctl *dm.Control) error {
	var errs []error
	for _, d := range p.Devices {
		suspended, err := d.settle(ctl)
		if err == nil && suspended {
			err = d.resume(ctl)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// converse leads the holder through the plan. When it returns the devices go on, unless the holder
// died.
func converse(ctx context.Context, to io.WriteCloser, from *json.Decoder, plan string, instant func(context.Context) error) (time.Duration, error) {
	say := func(text string) error {
		_, err := fmt.Fprintln(to, text)
		return err
	}
	hear := func(at string) (report, error) {
		var r report
		err := from.Decode(&r)
		switch {
		case err != nil:
			return r, fmt.Errorf("%w: %w", errHolderDied, err)
		case r.Error != "":
			return r, told{r.Error, kinds[r.Kind]}
		case r.At != at:
			return r, fmt.Errorf("the holder said %q in place of %q", r.At, at)
		}
		return r, nil
	}
	if err := say(plan); err != nil {
		return 0, fmt.Errorf("%w: %w", errHolderDied, err)
	}
	if _, err := hear(atReady); err != nil {
		return 0, err
	}
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	if err := say(sayGo); err != nil {
		return 0, fmt.Errorf("%w: %w", errHolderDied, err)
	}
	if _, err := hear(atStill); err != nil {
		return 0, err
	}
	if instant != nil {
		if err := instant(ctx); err != nil {
			to.Close()
			r, _ := hear(atDone) // what the holder says of it is that it was told to give up
			return r.Passed, err
		}
	}
	if err := say(sayCut); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		_ = err // the holder has gone on without us, and says why
	}
	r, err := hear(atDone)
	return r.Passed, err
}
