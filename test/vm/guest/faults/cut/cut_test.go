//go:build linux

// Package cut_test runs in guests only (see package guest): each boot looks at what the
// last power cut left, and then mirrors until the next one.
package cut_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"tidemark/test/vm/guest"
)

func TestMain(m *testing.M) { guest.Main(m) }

// pair is a source, an ext4 on the whole of its disk, and its mirror on the other disk.
type pair struct {
	source   string
	target   string
	stateDir string
}

// TestCut is one boot.
func TestCut(t *testing.T) {
	first, stage := os.Getenv("BOOT") == "0", os.Getenv("STAGE")
	p := open(t, first)
	if !first {
		p.afterCut(t, stage == "resume")
	}
	if stage == "" {
		return
	}
	dir := p.mount(t)
	if first {
		fill(t, filepath.Join(dir, "large"), 800000) // so that the first copy takes many writes
	}
	if _, err := strconv.Atoi(stage); err == nil { // a run like the one to be cut is counted
		change(t, dir, 1)
		guest.Tell(t, "begin")
		p.mirror(t, "--force-freeze")
		guest.Tell(t, "end")
	}
	change(t, dir, 2)
	if _, err := os.Stat(p.target); err == nil {
		guest.Tell(t, "old "+guest.Sum(t, p.target))
	}
	load(t, dir)
	p.toCut(t, stage)
	t.Fatal("there is still power")
}

// toCut mirrors until the power goes, at the latest when the run has ended.
func (p *pair) toCut(t *testing.T, stage string) {
	switch stage {
	case "first", "resume":
		guest.Tell(t, "cut-at-write 5")
		p.mirror(t, "--force-freeze")
	case "before":
		here := "/run/here"
		p.begin(t, "--force-freeze", "--pre-hook", "touch "+here+"; sleep 60")
		until(t, func() bool { _, err := os.Stat(here); return err == nil })
	case "frozen":
		// Without a tracker all of the source is read while it is frozen, and nothing before.
		run := p.begin(t, "--force-freeze", "--tracker", "scan")
		until(t, func() bool { return readBytes(run.Process.Pid) > 8<<20 })
	default:
		guest.Tell(t, "cut-at-percent "+stage)
		p.mirror(t, "--force-freeze")
	}
	guest.Tell(t, "cut")
}

// open makes the filesystems, at first, and mounts that of the target.
func open(t *testing.T, first bool) *pair {
	t.Helper()
	disk := guest.Disk(t, "target")
	p := &pair{source: guest.Disk(t, "source")}
	state := disk
	if os.Getenv("KIND") == "device" {
		start, _ := strconv.Atoi(guest.Sectors(t, p.source)) //nolint:errcheck // a bad table fails
		size, _ := strconv.Atoi(guest.Sectors(t, disk))      //nolint:errcheck // as above
		p.target = guest.Mapper(t, "target", fmt.Sprintf("0 %d linear %s 0", start, disk))
		state = guest.Mapper(t, "state", fmt.Sprintf("0 %d linear %s %d", size-start, disk, start))
	}
	if first {
		mkfs(t, state)
		mkfs(t, p.source)
	}
	p.stateDir = "/mnt"
	guest.Run(t, "mount", state, p.stateDir)
	t.Cleanup(func() { guest.Run(t, "umount", p.stateDir) })
	if p.target == "" {
		p.target = filepath.Join(p.stateDir, "mirror.img")
	}
	return p
}

func mkfs(t *testing.T, device string) {
	t.Helper()
	guest.Run(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=1", device)
}

// afterCut looks at what a cut left: the source is clean, the target old or new. Unless
// the first copy is to go on under another cut, the next run follows, and the mirror
// equals the source.
func (p *pair) afterCut(t *testing.T, leave bool) {
	t.Helper()
	dir := t.TempDir()
	guest.Run(t, "mount", p.source, dir)
	guest.Run(t, "umount", dir)
	guest.Run(t, "e2fsck", "-fn", p.source)
	found := p.find(t)
	guest.Tell(t, "found "+found)
	if leave {
		return
	}
	out := p.mirror(t)
	if pending := found == "pending"; strings.Contains(out, "finished a change") != pending {
		t.Fatalf("found %s, and said:\n%s", found, out)
	}
	guest.Run(t, "tidemark", "--state-dir", p.stateDir, "verify", p.target)
	if guest.Sum(t, p.source) != guest.Sum(t, p.target) {
		t.Fatal("after the next run the mirror differs")
	}
}

// find tells what the target is before any run.
func (p *pair) find(t *testing.T) string {
	t.Helper()
	st, exists := p.status(t)
	verify := func(want int) {
		t.Helper()
		cmd := p.command("verify", p.target)
		out, _ := cmd.CombinedOutput() //nolint:errcheck // the code is what counts
		if code := cmd.ProcessState.ExitCode(); code != want {
			t.Fatalf("verify: exit code %d, want %d\n%s", code, want, out)
		}
	}
	switch {
	case !exists:
		return "unfinished"
	case st.Pending:
		verify(1)
		return "pending"
	case !st.Complete:
		verify(0) // of what has been copied
		return "unfinished"
	}
	verify(0)
	if guest.Sum(t, p.target) == os.Getenv("OLD") {
		return "old"
	}
	guest.Run(t, "e2fsck", "-fn", p.clone(t))
	return "new"
}

// clone returns a copy of the mirror with its journal replayed.
func (p *pair) clone(t *testing.T) string {
	t.Helper()
	copied, at := filepath.Join(t.TempDir(), "copy"), t.TempDir()
	guest.Run(t, "cp", p.target, copied)
	guest.Modprobe(t, "loop")
	guest.Run(t, "mount", "-o", "loop", copied, at)
	guest.Run(t, "umount", at)
	return copied
}

// known is what status tells of a mirror.
type known struct{ Complete, Pending bool }

// status tells what is known of the mirror, and whether there is one.
func (p *pair) status(t *testing.T) (st known, exists bool) {
	t.Helper()
	out, err := p.command("status", "--json", p.target).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if !strings.Contains(string(exit.Stderr), "no mirror") && !strings.Contains(string(exit.Stderr), "no such file") {
			t.Fatalf("%v: %s", err, exit.Stderr)
		}
		return known{}, false
	}
	if err := json.Unmarshal(out, &st); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return st, true
}

func (p *pair) command(args ...string) *exec.Cmd {
	return exec.Command("tidemark", append([]string{"--state-dir", p.stateDir}, args...)...)
}

// mirror makes a run that must succeed, if it ends.
func (p *pair) mirror(t *testing.T, flags ...string) string {
	t.Helper()
	out, err := p.command(append(append([]string{"mirror"}, flags...), p.source, p.target)...).CombinedOutput()
	if err != nil {
		t.Fatalf("mirror: %v\n%s", err, out)
	}
	return string(out)
}

// begin starts a run that will not end.
func (p *pair) begin(t *testing.T, flags ...string) *exec.Cmd {
	t.Helper()
	cmd := p.command(append(append([]string{"mirror"}, flags...), p.source, p.target)...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// until waits for what must come true.
func until(t *testing.T, is func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}

// readBytes is what a process has read from disks so far.
func readBytes(pid int) int64 {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "io"))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(b), "\nread_bytes: ")
	line, _, _ := strings.Cut(after, "\n")
	n, _ := strconv.ParseInt(strings.TrimSpace(line), 10, 64) //nolint:errcheck // 0 will do
	return n
}

func (p *pair) mount(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	guest.Run(t, "mount", p.source, dir)
	return dir // until the power goes
}

// change writes files of several sizes that depend on seed, and removes others.
func change(t *testing.T, dir string, seed int) {
	t.Helper()
	seed += 10 * len(os.Getenv("BOOT")+os.Getenv("STAGE"))
	for i := range 12 {
		name := filepath.Join(dir, fmt.Sprint("file-", (seed+i)%30))
		fill(t, name, seed*100+i)
	}
	os.Remove(filepath.Join(dir, fmt.Sprint("file-", (seed+20)%30))) //nolint:errcheck // if it is there
	guest.Run(t, "sync")
}

func fill(t *testing.T, name string, seed int) {
	t.Helper()
	p := bytes.Repeat(fmt.Append(nil, seed, " "), 4000*(1+seed%9)+seed)
	if err := os.WriteFile(name, p, 0o600); err != nil {
		t.Fatal(err)
	}
}

// load writes small files for ever.
func load(t *testing.T, dir string) {
	go func() {
		guest.StepBack()
		for i := 0; ; i++ {
			name := filepath.Join(dir, fmt.Sprint("load-", i%10))
			f, err := os.Create(name)
			if err == nil {
				_, err = f.WriteString(strings.Repeat(fmt.Sprint(i), 3000))
				err = errors.Join(err, f.Sync(), f.Close())
			}
			if err != nil {
				t.Log(err)
				return
			}
		}
	}()
}
