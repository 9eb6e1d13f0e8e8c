package pairs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tidemark/linux/atomicfile"
	"tidemark/linux/mounts/mountstest"
	"tidemark/track/bpf"
	"tidemark/transfer"
)

// looked returns options with folders of their own, and an image to mirror.
func looked(t *testing.T) (Options, Pair) {
	dir := t.TempDir()
	o := Options{StateDir: filepath.Join(dir, "state"), Track: bpf.Options{RunDir: filepath.Join(dir, "run")}}
	return o, Pair{Source: mountstest.Image(t, 4<<20), Target: filepath.Join(dir, "copy.img")}
}

func look(t *testing.T, path string, o Options) Seen {
	t.Helper()
	m, err := Look(t.Context(), path, o)
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
	if _, err := Mirror(t.Context(), []Pair{pair}, during); err != nil || told == 0 {
		t.Fatalf("%v; told %d times", err, told)
	}
	if m := look(t, pair.Target, o); m.Running != nil || m.Condition != Complete {
		t.Errorf("afterwards: %+v", m)
	}
}

// What a run left that was killed is told from a run by its lock.
func TestARunThatWasKilledIsNotInProgress(t *testing.T) {
	o, pair := looked(t)
	if _, err := Mirror(t.Context(), []Pair{pair}, o); err != nil {
		t.Fatal(err)
	}
	place, err := Find(pair.Target, o.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	left := runFolder(o.Track.RunDir, place.Folder)
	if err := errors.Join(os.MkdirAll(left, 0o700), atomicfile.WriteJSON(filepath.Join(left, progressFile), atomicfile.Options{}, Running{PID: 1})); err != nil {
		t.Fatal(err)
	}
	if m := look(t, pair.Target, o); m.Running != nil {
		t.Errorf("%+v", m.Running)
	}
	if _, err := Mirror(t.Context(), []Pair{pair}, o); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); err == nil {
		t.Error("the next run left it there")
	}
}

// A run tells of itself at most once a second, whatever it is told.
func TestProgressIsPublishedNowAndThen(t *testing.T) {
	o, _ := looked(t)
	p := &publisher{next: func(transfer.Event) {}}
	if err := p.add(o.Track.RunDir, "folder"); err != nil {
		t.Fatal(err)
	}
	defer p.close()
	for done := range int64(1000) {
		p.tell(transfer.Event{Phase: "copy", Done: done, Total: 1000})
	}
	p.last = time.Now().Add(-publishEvery)
	before, err := runningOn(o.Track.RunDir, "folder")
	if err != nil || before == nil || before.Done != 0 {
		t.Fatalf("%+v, %v", before, err)
	}
	p.tell(transfer.Event{Phase: "copy", Done: 1000, Total: 1000})
	if after, err := runningOn(o.Track.RunDir, "folder"); err != nil || after == nil || after.Done != 1000 {
		t.Errorf("%+v, %v", after, err)
	}
}

// A disk that comes up under another name is the same mirror in the list as well.
func TestTheListFollowsADeviceToItsNewName(t *testing.T) {
	o, pair := looked(t)
	pair.Target = mountstest.Disk(t, 4<<20)
	if _, err := Mirror(t.Context(), []Pair{pair}, o); err != nil {
		t.Fatal(err)
	}
	all, err := registered(o.StateDir)
	if err != nil || len(all) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	all[0].Path = "/dev/another-name"
	if err := atomicfile.WriteJSON(all[0].file(o.StateDir), atomicfile.Options{}, all[0]); err != nil {
		t.Fatal(err)
	}
	found, err := Mirrors(context.Background(), o)
	if err != nil || len(found) != 1 || found[0].Path != pair.Target || found[0].Condition != Complete {
		t.Errorf("%+v, %v", found, err)
	}
}

// A rescue system mounts the backup disk read-only: what a verify finds is told, and that
// it is not remembered.
func TestVerifyOfAMirrorThatCannotBeWrittenTo(t *testing.T) {
	o, pair := looked(t)
	dir := t.TempDir()
	mountstest.Run(t, "mount", "-t", "tmpfs", "tidemark-test", dir)
	t.Cleanup(func() { mountstest.Unmount(t, dir) })
	pair.Target = filepath.Join(dir, "copy.img")
	if _, err := Mirror(t.Context(), []Pair{pair}, o); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(pair.Target+folderEnd+"/journal", []byte("not committed"), 0o600); err != nil {
		t.Fatal(err)
	}
	image, err := os.OpenFile(pair.Target, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := image.WriteAt([]byte("damage"), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := image.Close(); err != nil {
		t.Fatal(err)
	}
	mountstest.Run(t, "mount", "-o", "remount,ro", dir)
	notes := 0
	o.Progress = func(e transfer.Event) {
		if e.Text != "" {
			notes++
		}
	}
	bad, checked, err := Verify(t.Context(), pair.Target, o)
	if err != nil || bad.Bytes() != 4096 || checked != 4<<20 || notes != 1 {
		t.Errorf("%v of %d, %d notes, %v", bad, checked, notes, err)
	}
	mountstest.Run(t, "mount", "-o", "remount,rw", dir)
	if _, _, err := Verify(t.Context(), pair.Target, o); err != nil {
		t.Error(err)
	}
	if m := look(t, pair.Target, o); m.Damage == nil || m.Damage.Bytes != 4096 {
		t.Errorf("%+v", m)
	}
}
