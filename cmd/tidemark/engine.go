package main

import (
	"context"
	"errors"

	"tidemark/format/sidecar"
	"tidemark/transfer"
)

var errEngine = errors.New("not joined to the engine yet")

// mirror does one run.
func (f *mirrorFlags) mirror(ctx context.Context, g *globals, pairs []pair, bar progress) ([]transfer.Report, error) {
	return nil, errEngine
}

// verify compares a mirror with its checksums or with a source.
func (g *globals) verify(ctx context.Context, target, against string, bar progress) (verified, error) {
	return verified{}, errEngine
}

// readStatus returns what is known of a mirror, and changes nothing.
func (g *globals) readStatus(target string) (sidecar.State, error) {
	return sidecar.State{}, errEngine
}
