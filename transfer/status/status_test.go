package status_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"tidemark/linux/atomicfile"
	"tidemark/linux/mounts/mountstest"
	"tidemark/track/bpf"
	"tidemark/transfer"
	"tidemark/transfer/pairs"
	"tidemark/transfer/running"
	"tidemark/transfer/status"
	"tidemark/transfer/target"
)

// looked returns options with folders of their own, and an image to mirror.
func looked(t *testing.T) (pairs.Options, pairs.Pair) {
	dir := t.TempDir()
	o := pairs.Options{StateDir: filepath.Join(dir, "state"), Track: bpf.Options{RunDir: filepath.Join(dir, "run")}}
	return o, pairs.Pair{Source: mountstest.Image(t, 4<<20), Target: filepath.Join(dir, "copy.img")}
}

func look(t *testing.T, path string, o pairs.Options) status.Seen {
	t.Helper()
	m, err := status.Look(t.Context(), path, status.Options{StateDir: o.StateDir, Track: o.Track})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestARunInProgressIsTold(t *testing.T) {
	o, pair := looked(t)
	told := 0
	during := o
	during.Progress = func(e transfer.Event) {
		if e.Phase != "copy" {
			return
		}
		told++
		m := look(t, pair.Target, o)
		if m.Running == nil || m.Running.PID != os.Getpid() || m.Running.Phase == "" || m.Running.Since.IsZero() {
			t.Errorf("while %v: %+v", e, m.Running)
		}
	}
	if _, err := pairs.Mirror(t.Context(), []pairs.Pair{pair}, during); err != nil || told == 0 {
		t.Fatalf("%v; told %d times", err, told)
	}
	if m := look(t, pair.Target, o); m.Running != nil || m.Condition != status.Complete {
		t.Errorf("afterwards: %+v", m)
	}
}

// What a run left that was killed is told from a run by its lock.
func TestARunThatWasKilledIsNotInProgress(t *testing.T) {
	o, pair := looked(t)
	if _, err := pairs.Mirror(t.Context(), []pairs.Pair{pair}, o); err != nil {
		t.Fatal(err)
	}
	place, err := target.Find(pair.Target, o.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(o.Track.RunDir, "runs", target.Hashed(place.Folder))
	if err := errors.Join(os.MkdirAll(left, 0o700), atomicfile.WriteJSON(filepath.Join(left, "progress"), atomicfile.Options{}, running.Run{PID: 1})); err != nil {
		t.Fatal(err)
	}
	if m := look(t, pair.Target, o); m.Running != nil {
		t.Errorf("%+v", m.Running)
	}
	if _, err := pairs.Mirror(t.Context(), []pairs.Pair{pair}, o); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); err == nil {
		t.Error("the next run left it there")
	}
}

// A disk that comes up under another name is the same mirror in the list as well.
func TestTheListFollowsADeviceToItsNewName(t *testing.T) {
	o, pair := looked(t)
	pair.Target = mountstest.Disk(t, 4<<20)
	if _, err := pairs.Mirror(t.Context(), []pairs.Pair{pair}, o); err != nil {
		t.Fatal(err)
	}
	all, err := target.Registered(o.StateDir)
	files, globErr := filepath.Glob(filepath.Join(o.StateDir, "mirrors", "*.json"))
	if err := errors.Join(err, globErr); err != nil || len(all) != 1 || len(files) != 1 {
		t.Fatalf("%+v, %v, %v", all, files, err)
	}
	all[0].Path = "/dev/another-name"
	if err := atomicfile.WriteJSON(files[0], atomicfile.Options{}, all[0]); err != nil {
		t.Fatal(err)
	}
	found, err := status.Mirrors(t.Context(), status.Options{StateDir: o.StateDir, Track: o.Track})
	if err != nil || len(found) != 1 || found[0].Path != pair.Target || found[0].Condition != status.Complete {
		t.Errorf("%+v, %v", found, err)
	}
}
