package fsfreeze

import (
	"os"
	"path/filepath"
	"testing"
)

// Two freezes at once, in any order, leave the switch as it was.
func TestGracePeriodsAreAsBefore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "switch")
	for _, was := range []string{"0", "1"} {
		if err := os.WriteFile(path, []byte(was+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		first := openGrace(path)
		first.shorten(true)
		second := openGrace(path)
		second.shorten(true)
		if now, err := os.ReadFile(path); err != nil || string(now) != "1\n" {
			t.Errorf("%q while frozen, %v", now, err)
		}
		first.shorten(false)
		second.shorten(false)
		first.close()
		second.close()
		if now, err := os.ReadFile(path); err != nil || string(now) != was+"\n" {
			t.Errorf("%q afterwards, %v, was %q", now, err, was)
		}
	}
	openGrace(filepath.Join(t.TempDir(), "missing")).shorten(true)
}
