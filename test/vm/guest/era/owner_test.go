//go:build linux

package era_test

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"tidemark/linux/dmera"
	"tidemark/test/vm/guest"
)

// A process that holds a snapshot keeps others from taking one; when it is killed,
// what it left is dropped by who comes next.
func TestSnapshotOfADeadProcess(t *testing.T) {
	d := create(t, "owned", 64*kib)
	for _, c := range []struct {
		name   string
		forget func() // what is lost between the death and the next run
		kept   bool   // the snapshot then counts as somebody else's
	}{
		{"nothing lost", func() {}, false},
		{"after a reboot", func() { remove(t, "/run/tidemark") }, false},
		{"after a reboot, without a state folder", func() { remove(t, "/run/tidemark", "/var/lib/tidemark") }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			kill := holder(t, d.Name())
			if _, err := d.TakeSnapshot(t.Context()); !errors.Is(err, dmera.ErrHeld) {
				t.Errorf("snapshot beside a live process: %v", err)
			}
			held := status(t, d).HeldSnapshot
			kill()
			c.forget()
			s, err := d.TakeSnapshot(t.Context())
			if c.kept {
				if !errors.Is(err, dmera.ErrHeld) || status(t, d).HeldSnapshot != held {
					t.Errorf("snapshot of nobody known: %v", err)
				}
				guest.Run(t, "dmsetup", "message", d.Name(), "0", "drop_metadata_snap")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if st := status(t, d); st.HeldSnapshot != 0 {
				t.Errorf("held after Close: %+v", st)
			}
		})
	}
}

// A snapshot of another program is not dropped, whether it was there first or was
// taken while we had made ready, or after a process of ours died before it took one.
func TestSnapshotOfAnotherProgram(t *testing.T) {
	d := create(t, "theirs", 64*kib)
	take := func() { guest.Run(t, "dmsetup", "message", "theirs", "0", "take_metadata_snap") }
	drop := func() { guest.Run(t, "dmsetup", "message", "theirs", "0", "drop_metadata_snap") }
	held := func(when string) {
		t.Helper()
		_, err := d.TakeSnapshot(t.Context())
		if !errors.Is(err, dmera.ErrHeld) || status(t, d).HeldSnapshot == 0 {
			t.Errorf("%s: %v", when, err)
		}
	}
	take()
	held("there first")
	if _, errs, code := tidemark(t, "era", "changes", "theirs", "--since", "0"); code != 7 || !strings.Contains(errs, "drop_metadata_snap") {
		t.Errorf("changes: exit code %d, %s", code, errs)
	}
	drop()
	if err := d.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	take()
	held("taken while ready")
	drop()
	s, err := d.TakeSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	take()
	held("after ours")
	drop()
}

// A snapshot that somebody drops while it is read gives no list.
func TestSnapshotDroppedMeanwhile(t *testing.T) {
	d := create(t, "dropped", 64*kib)
	s, err := d.TakeSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	guest.Run(t, "dmsetup", "message", "dropped", "0", "drop_metadata_snap")
	if set, err := s.Changed(t.Context(), 0); err == nil {
		t.Errorf("changes from a snapshot that is gone: %v", set)
	}
	if err := s.Close(); err == nil {
		t.Error("a snapshot that was gone was dropped")
	}
	if s, err = d.TakeSnapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Changed(t.Context(), s.Era()+1); !errors.Is(err, dmera.ErrFuture) {
		t.Errorf("since an era to come: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// holder starts a process that takes the snapshot of a device, and returns what
// kills it.
func holder(t testing.TB, name string) (kill func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), holdEnv+"="+name)
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "held\n" {
		t.Fatalf("the holder said %q, %v", line, err)
	}
	return func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
	}
}

func remove(t testing.TB, folders ...string) {
	t.Helper()
	for _, f := range folders {
		if err := os.RemoveAll(f); err != nil {
			t.Fatal(err)
		}
	}
}
