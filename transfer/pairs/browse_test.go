package pairs_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"tidemark/linux/mounts/mountstest"
	"tidemark/transfer/browse"
	"tidemark/transfer/copies"
)

func TestAMirrorIsBroughtToItsEndBeforeItsFilesAreShown(t *testing.T) {
	const size = 4 * mib
	source, o := mountstest.Disk(t, size), quiet(t.TempDir())
	mountstest.Mkfs(t, "ext4", source)
	dir := mountstest.Mount(t, source)
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
	mountstest.Unmount(t, dir)
	image := copied(t, source, o)
	waiting(t, image, size, func(p []byte) { copy(p, bytes.ReplaceAll(p, []byte("older"), []byte("newer"))) })

	if _, err := copies.Browse(t.Context(), image, dir, 0, copies.Options{StateDir: o.StateDir}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := browse.Unmount(dir); err != nil {
			t.Error(err)
		}
	})
	if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(got) != "newer" {
		t.Errorf("it shows %q, %v", got, err)
	}
}
