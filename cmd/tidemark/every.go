package main

import (
	"context"
	"errors"
	"strings"
	"time"

	"tidemark/transfer/origin"
)

// repeat calls once at every interval until ctx ends; a call that takes longer
// delays the next. An error that may pass is told and tried again; a refusal, damage
// or a signal ends it, and so does a source that cannot be opened the first time, and
// an output that nobody reads.
func repeat(ctx context.Context, interval time.Duration, once func(ctx context.Context, next func() time.Time) error, told func(err error, next time.Time)) error {
	planned := time.Now()
	next := func() time.Time {
		if now := time.Now(); planned.Add(interval).Before(now) {
			return now
		}
		return planned.Add(interval)
	}
	for first := true; ; first = false {
		if err := once(ctx, next); err != nil {
			if first && errors.Is(err, origin.ErrSource) || errors.Is(err, errNoReader) {
				return err
			}
			switch classify(ctx, err).code {
			case exitUsage, exitRefused, exitDamaged, exitHungUp, exitInterrupted, exitTerminated:
				return err
			}
			told(err, next())
		}
		planned = next()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Until(planned)):
		}
	}
}

// stand adds to the error of a run that a signal ended what the targets are now.
func (c *copying) stand(ctx context.Context, err error) error {
	var stopped signalError
	if err == nil || c.f.dryRun || !errors.As(context.Cause(ctx), &stopped) {
		return err
	}
	if c.standing != nil {
		err = hinted{err, strings.Join(c.standing(), "; ")}
	}
	if c.f.asJSON {
		err = told{err} // it is no run: all that were begun have their objects
	}
	return err
}
