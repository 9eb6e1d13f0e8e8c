package tracking_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/block"
	"tidemark/linux/mounts/mountstest"
	"tidemark/track"
	"tidemark/track/bpf"
	"tidemark/transfer/tracking"
)

// Whatever keeps a source from being tracked, a mirror that was not told how to track reads
// all of it, and says why.
func TestNoErrorOfTrackingKeepsFromScanning(t *testing.T) {
	src, err := block.Open(mountstest.Disk(t, 16<<20), block.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]bpf.Options{
		"a run folder in a file":  {RunDir: filepath.Join(file, "run")},
		"no bpffs, and no folder": {RunDir: t.TempDir(), BPFFS: filepath.Join(file, "bpf")},
	} {
		for _, dry := range []bool{false, true} {
			var notes strings.Builder
			c := tracking.Chooser{Options: tracking.Options{
				Track: o, Dry: dry, Note: func(format string, args ...any) { fmt.Fprintf(&notes, format, args...) },
			}}
			got, untracked, err := c.Open(t.Context(), src, "")
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			got.Close()
			if dry && got.Kind() == bpf.Kind {
				continue // it was not tried
			}
			if got.Kind() != track.KindScan || untracked == "" || !strings.Contains(notes.String(), "cannot be tracked") {
				t.Errorf("%s: tracker %s, because %q, noted %q", name, got.Kind(), untracked, notes.String())
			}
			c.Tracker = bpf.Kind
			if _, _, err := c.Open(t.Context(), src, ""); err == nil {
				t.Errorf("%s: it was asked for, and there was no error", name)
			}
		}
	}
}
