package copies_test

import (
	"os"
	"path/filepath"
	"testing"

	"tidemark/linux/mounts/mountstest"
	"tidemark/track/bpf"
	"tidemark/transfer"
	"tidemark/transfer/copies"
	"tidemark/transfer/pairs"
	"tidemark/transfer/target"
)

// A rescue system mounts the backup disk read-only: what a verify finds is told, and that
// it is not remembered.
func TestVerifyOfAMirrorThatCannotBeWrittenTo(t *testing.T) {
	dir, stateDir := t.TempDir(), t.TempDir()
	source, image := mountstest.Image(t, 4<<20), filepath.Join(dir, "copy.img")
	mountstest.Run(t, "mount", "-t", "tmpfs", "tidemark-test", dir)
	t.Cleanup(func() { mountstest.Unmount(t, dir) })
	if _, err := pairs.Mirror(t.Context(), []pairs.Pair{{Source: source, Target: image}}, pairs.Options{StateDir: stateDir, Track: bpf.Options{RunDir: t.TempDir()}}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image+target.FolderEnd+"/journal", []byte("not committed"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("damage"), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	mountstest.Run(t, "mount", "-o", "remount,ro", dir)
	notes := 0
	o := copies.Options{StateDir: stateDir, Progress: func(e transfer.Event) {
		if e.Text != "" {
			notes++
		}
	}}
	bad, checked, err := copies.Verify(t.Context(), image, o)
	if err != nil || bad.Bytes() != 4096 || checked != 4<<20 || notes != 1 {
		t.Errorf("%v of %d, %d notes, %v", bad, checked, notes, err)
	}
	mountstest.Run(t, "mount", "-o", "remount,rw", dir)
	if _, _, err := copies.Verify(t.Context(), image, o); err != nil {
		t.Error(err)
	}
	if m, err := target.Status(image, stateDir); err != nil || m.Damage == nil || m.Damage.Bytes != 4096 {
		t.Errorf("%+v, %v", m, err)
	}
}
