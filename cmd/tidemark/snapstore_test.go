package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"tidemark/format/snapstore"
	"tidemark/transfer/stores"
)

// A signal that cuts an apply off tells that the origin is neither old nor new, and what ends
// that.
func TestAnApplyThatIsCutOffSaysWhatEndsIt(t *testing.T) {
	const chunk, count = 1 << 20, 64
	dir := t.TempDir()
	store, origin := filepath.Join(dir, "store"), filepath.Join(dir, "origin")
	f, err := os.Create(store)
	if err != nil {
		t.Fatal(err)
	}
	w, err := snapstore.NewWriter(f, snapstore.SizeFor(count, chunk), chunk)
	for i := range uint64(count) {
		if err == nil {
			err = w.Add(i, nil)
		}
	}
	if err == nil {
		err = errors.Join(w.End(f.Sync), f.Truncate(snapstore.SizeFor(count, chunk)), f.Close())
	}
	if err := errors.Join(err, os.WriteFile(origin, nil, 0o600), os.Truncate(origin, count*chunk)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	o := stores.Options{StateDir: dir, Progress: func(string, int64, int64) { cancel(signalError{syscall.SIGINT}) }}
	_, err = applyStore(ctx, store, origin, false, o)
	told := failureOf(ctx, &cobra.Command{}, err)
	if told.Exit != exitInterrupted || !strings.Contains(told.Error, "it is partly written") || !strings.Contains(told.Error, "run the same command again") {
		t.Errorf("%d: %s", told.Exit, told.Error)
	}
	o.Progress = nil
	if _, err := applyStore(context.Background(), store, origin, false, o); err != nil {
		t.Error(err)
	}
}
