//go:build linux

package faults_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"tidemark/test/vm/content"
	"tidemark/test/vm/guest"
)

// TestLogged makes mirrors on disks whose every write is logged, with a mark at the
// beginning and the end of each run. The host replays the logs.
func TestLogged(t *testing.T) {
	guest.Modprobe(t, "dm-log-writes")
	for _, kind := range []string{"device", "image"} {
		t.Run(kind, func(t *testing.T) {
			source := sourceDevice(t)
			disk, log := guest.Disk(t, "on-"+kind), guest.Disk(t, "log-"+kind)
			sectors := guest.Sectors(t, disk)
			logged := guest.Mapper(t, "logged", "0 "+sectors+" log-writes "+disk+" "+log)
			mark := func(name string, step int) {
				guest.Run(t, "dmsetup", "message", "logged", "0", fmt.Sprintf("mark %s-%d", name, step))
			}
			target, stateDir := loggedTarget(t, kind, logged)
			for step := range content.Steps {
				write(t, source, content.After(step))
				mark("begin", step)
				if step == 0 {
					interrupted(t, stateDir, source, target)
				}
				mirrored(t, stateDir, "resume incremental", source, target)
				mark("end", step)
				if guest.Sum(t, source) != guest.Sum(t, target) {
					t.Fatalf("step %d: the mirror differs", step)
				}
			}
		})
	}
}

// loggedTarget lays out a logged disk: either a target device and a filesystem for the
// state folder behind it, or a filesystem for an image.
func loggedTarget(t *testing.T, kind, logged string) (target, stateDir string) {
	t.Helper()
	if kind == "image" {
		mkfs(t, logged)
		dir := mount(t, logged)
		return filepath.Join(dir, "mirror.img"), dir
	}
	const start = content.Size / 512
	target = guest.Mapper(t, "target", fmt.Sprintf("0 %d linear %s 0", start, logged))
	rest := guest.Mapper(t, "state", fmt.Sprintf("0 %d linear %s %d", loggedSize/512-start, logged, start))
	mkfs(t, rest)
	return target, mount(t, rest)
}

// loggedSize is the length of a logged disk in bytes, as the host made it.
const loggedSize = 64 << 20

// interrupted makes a first copy that is stopped half way.
func interrupted(t *testing.T, stateDir, source, target string) {
	t.Helper()
	cmd := exec.Command("tidemark", "mirror", "--bwlimit", "6MB", source, target)
	cmd.Env = append(os.Environ(), "TIDEMARK_STATE_DIR="+stateDir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		cmd.Wait() //nolint:errcheck // its state is looked at below
	}()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for readBytes(cmd.Process.Pid) < content.Size/2 {
		select {
		case <-done:
			t.Fatalf("the first copy ended by itself: %v", cmd.ProcessState)
		case <-poll.C:
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	<-done
	if code := cmd.ProcessState.ExitCode(); code != exitByINT {
		t.Fatalf("exit code %d", code)
	}
}
