//go:build linux

// Package nights_test runs in the guests of a machine that is backed up, lost and
// restored (see package guest): one script a boot.
package nights_test

import (
	"bufio"
	"os"
	"os/exec"
	"testing"
	"time"

	"tidemark/test/vm/guest"
)

func TestMain(m *testing.M) { guest.Main(m) }

// TestScript runs the script that the host named, and says what it says.
func TestScript(t *testing.T) {
	cmd := exec.Command("sh", os.Getenv("SCRIPT"))
	if os.Getenv("LOST") == "" {
		cmd.Env = append(os.Environ(), "NEW="+guest.Disk(t, "new"), "BACKUP="+guest.Disk(t, "backup"))
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		t.Logf("%6.1f %s", time.Since(begun).Seconds(), lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}
