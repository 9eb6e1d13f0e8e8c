//go:build linux

// Package faults_test runs in guests only (see package guest): mirrors over disks that
// fail, lie, damage what they are given, or have every write logged.
package faults_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/test/vm/content"
	"tidemark/test/vm/guest"
)

func TestMain(m *testing.M) { guest.Main(m) }

// The exit codes of the program, from its man page.
const (
	exitOK        = 0
	exitError     = 1
	exitDifferent = 5
	exitByINT     = 130
)

// tidemark runs the program with a state folder and wants it to end with a code and to
// say all the words. It returns what it said.
func tidemark(t *testing.T, stateDir string, code int, words []string, args ...string) string {
	t.Helper()
	cmd := exec.Command("tidemark", args...)
	cmd.Env = append(os.Environ(), "TIDEMARK_STATE_DIR="+stateDir)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("tidemark %s: exit code %d, want %d\n%s", strings.Join(args, " "), got, code, out)
	}
	for _, w := range words {
		if !strings.Contains(string(out), w) {
			t.Fatalf("tidemark %s: %q is missing in what was said:\n%s", strings.Join(args, " "), w, out)
		}
	}
	return string(out)
}

// told is what a run of mirror reports.
type told struct {
	Mode    string `json:"mode"`
	Tracker string `json:"tracker"`
	Written int64  `json:"bytes_written"`
	Outcome string `json:"outcome"`
}

// mirrored makes a run that must succeed, in one of the modes.
func mirrored(t *testing.T, stateDir, modes string, args ...string) told {
	t.Helper()
	out := tidemark(t, stateDir, exitOK, nil, append([]string{"mirror", "--json"}, args...)...)
	var rep told
	at := strings.Index(out, "{")
	if at < 0 {
		t.Fatalf("no report:\n%s", out)
	}
	if err := json.NewDecoder(strings.NewReader(out[at:])).Decode(&rep); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(modes, rep.Mode) || rep.Tracker != "bpf" {
		t.Fatalf("mode %s, want %s, by bpf\n%s", rep.Mode, modes, out)
	}
	return rep
}

// write puts p at the start of a device, past the page cache.
func write(t testing.TB, device string, p []byte) {
	t.Helper()
	f, err := os.OpenFile(device, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page := block.AlignedBuffer(1 << 20)
	for r := bytes.NewReader(p); r.Len() > 0; {
		n, err := io.ReadFull(r, page)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
		if _, err := f.Write(page[:n]); err != nil {
			t.Fatal(err)
		}
	}
}

// device returns a dm-linear device of the first bytes of a disk, emptied.
func device(t testing.TB, name, disk string, bytes int64) string {
	t.Helper()
	path := guest.Mapper(t, name, "0 "+strconv.FormatInt(bytes/512, 10)+" linear "+disk+" 0")
	guest.Run(t, "blkdiscard", "-f", "-z", path)
	return path
}

// sourceDevice returns a device as large as the known contents that is not tracked any
// more when the test ends.
func sourceDevice(t testing.TB) string {
	t.Helper()
	path := device(t, "source", guest.Disk(t, "source"), content.Size)
	t.Cleanup(func() { guest.Run(t, "tidemark", "track", "stop", path) })
	return path
}

// mkfs makes an ext4 that does nothing in the background.
func mkfs(t testing.TB, device string) {
	t.Helper()
	guest.Run(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=1", device)
}

// mount mounts a filesystem until the end of the test.
func mount(t testing.TB, device string) string {
	t.Helper()
	at := t.TempDir()
	guest.Run(t, "mount", device, at)
	t.Cleanup(func() {
		if mounted(t, at) {
			guest.Run(t, "umount", at)
		}
	})
	return at
}

func mounted(t testing.TB, at string) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(table), " "+at+" ")
}

// readBytes is what a process has read from disks so far.
func readBytes(pid int) int64 {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "io"))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(b), "\nread_bytes: ")
	n, _ := strconv.ParseInt(strings.TrimSpace(strings.SplitN(after, "\n", 2)[0]), 10, 64) //nolint:errcheck // 0 will do
	return n
}
