package main

import (
	"context"

	"tidemark/extent"
	"tidemark/track/bpf"
	"tidemark/transfer"
	"tidemark/transfer/copies"
	"tidemark/transfer/pairs"
	"tidemark/view"
)

func (g *globals) trackOptions() bpf.Options {
	return bpf.Options{RunDir: g.runDir, BPFFS: g.bpffs}
}

// options turns the command line into what package pairs is told.
func (f *copyFlags) options(g *globals, bar progress) pairs.Options {
	o := pairs.Options{
		StateDir:  g.stateDir,
		Track:     g.trackOptions(),
		Tracker:   f.tracker.value,
		View:      f.view.value,
		Hooks:     view.Hooks{Pre: f.preHook, Post: f.postHook, Limit: f.hookTimeout},
		MaxFreeze: f.maxFreeze, ForceFreeze: f.forceFreeze,
		BytesPerSec: int64(f.bwLimit.byteSize),
		Whole:       f.whole, ForcePart: f.forcePart,
		Progress: shower(bar),
	}
	o.Track.BlockSize = int64(f.blockSize)
	if f.showHooks {
		o.Hooks.Said = func(hook, output string) { bar.Note(hook + ": " + output) }
	}
	return o
}

// verify compares a mirror with its checksums or with a source.
func (g *globals) verify(ctx context.Context, target, against string, bar progress) (verified, error) {
	o := copies.Options{StateDir: g.stateDir, Progress: shower(bar)}
	var bad extent.Set
	var err error
	v := verified{Target: target, Against: against}
	if against != "" {
		bad, v.Checked, err = copies.Compare(ctx, target, against, o)
	} else {
		bad, v.Checked, err = copies.Verify(ctx, target, o)
	}
	if v.Different = bad.Bytes(); err == nil && !bad.Empty() {
		v.locate(ctx, bad, bar)
	}
	return v, err
}

// shower shows the events of a run.
func shower(bar progress) func(transfer.Event) {
	var shown transfer.Event
	return func(e transfer.Event) {
		if e.Text != "" {
			bar.Note(e.Text)
			return
		}
		if e.Phase != shown.Phase || e.Pass != shown.Pass {
			bar.End()
			if e.Total > 0 {
				bar.Begin(e.Phase, e.Total)
			}
			shown = e
		}
		if e.Total > 0 {
			bar.Stored(e.Stored)
			bar.Done(e.Done)
		}
	}
}
