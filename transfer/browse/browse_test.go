package browse_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidemark/linux/mounts/mountstest"
	"tidemark/transfer/browse"
)

// filled makes a filesystem with one file on a device.
func filled(t *testing.T, kind, dev string) {
	t.Helper()
	mountstest.Mkfs(t, kind, dev)
	dir := mountstest.Mount(t, dev)
	if err := os.WriteFile(filepath.Join(dir, kind), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	mountstest.Unmount(t, dir)
}

// has fails the test unless dir shows the file of a filled filesystem.
func has(t *testing.T, dir, kind string) {
	t.Helper()
	if b, err := os.ReadFile(filepath.Join(dir, kind)); err != nil || string(b) != "content" {
		t.Errorf("%s: %q, %v", dir, b, err)
	}
}

func unmount(t *testing.T, dir string) {
	t.Helper()
	if _, err := browse.Unmount(dir); err != nil {
		t.Error(err)
	}
}

func TestEachFilesystemOfADiskIsShownBesideItsOriginal(t *testing.T) {
	disk, parts := mountstest.Partitioned(t, 1<<30, 3)
	kinds := []string{"ext4", "xfs", "btrfs"}
	for i, kind := range kinds {
		filled(t, kind, parts[i])
	}
	copied := mountstest.Image(t, 0)
	mountstest.Run(t, "cp", "--sparse=always", disk, copied)
	for _, part := range parts {
		mountstest.Mount(t, part)
	}
	sum := mountstest.Run(t, "stat", "-c", "%y %z", copied)
	for range 2 { // a Btrfs that was shown once is not in the way
		dir := t.TempDir()
		shown, err := browse.Mount(t.Context(), copied, dir, browse.Options{})
		if err != nil || len(shown) != 3 {
			t.Fatalf("%+v, %v", shown, err)
		}
		for i, kind := range kinds {
			has(t, shown[i].Dir, kind)
		}
		unmount(t, dir)
		if shown, err = browse.Mount(t.Context(), copied, dir, browse.Options{Partition: 3}); err != nil || len(shown) != 1 {
			t.Fatalf("%+v, %v", shown, err)
		}
		has(t, dir, "btrfs")
		mountstest.Unmount(t, dir) // by umount(8)
	}
	if now := mountstest.Run(t, "stat", "-c", "%y %z", copied); now != sum {
		t.Error("the image was changed")
	}
}

func TestWhatIsNoFilesystemOrCannotBeShownIsRefusedWithARemedy(t *testing.T) {
	a, b := mountstest.Disk(t, 150<<20), mountstest.Disk(t, 150<<20)
	mountstest.Mkfs(t, "btrfs", a, b)
	swap := mountstest.Image(t, 16<<20)
	mountstest.Run(t, "mkswap", swap)
	luks := mountstest.Image(t, 32<<20)
	mountstest.Run(t, "cryptsetup", "luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--keyfile-size", "64", luks, swap)
	xfs, log := mountstest.Image(t, 300<<20), mountstest.Image(t, 64<<20)
	mountstest.Run(t, "mkfs.xfs", "-q", "-f", "-l", "logdev="+log, xfs)
	for image, want := range map[string]struct {
		class error
		text  string
	}{
		a:                           {browse.ErrOriginal, "losetup -r"},
		swap:                        {browse.ErrNothing, "swap has no files"},
		luks:                        {browse.ErrNothing, "cryptsetup open --readonly"},
		xfs:                         {browse.ErrNothing, "logdev="},
		log:                         {browse.ErrNothing, "it is no filesystem"},
		mountstest.Image(t, 16<<20): {browse.ErrNothing, "no filesystem was found"},
	} {
		dir := t.TempDir()
		if _, err := browse.Mount(t.Context(), image, dir, browse.Options{}); !errors.Is(err, want.class) || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: %v", image, err)
		}
		if _, err := browse.Unmount(dir); !errors.Is(err, browse.ErrNotOurs) {
			t.Errorf("%s: something was left mounted: %v", image, err)
		}
	}
}

func TestAJournalThatWaitsIsNotReplayed(t *testing.T) {
	dev := mountstest.Disk(t, 64<<20)
	mountstest.Mkfs(t, "ext4", dev)
	copied := mountstest.Image(t, 0)
	mountstest.Run(t, "debugfs", "-w", "-R", "feature +needs_recovery", dev)
	mountstest.Run(t, "cp", dev, copied)
	sum := mountstest.Run(t, "stat", "-c", "%y %z", copied)
	var notes []string
	dir := t.TempDir()
	if _, err := browse.Mount(t.Context(), copied, dir, browse.Options{Note: func(text string) { notes = append(notes, text) }}); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(notes, func(s string) bool { return strings.Contains(s, "journal is not replayed") }) {
		t.Errorf("%q", notes)
	}
	unmount(t, dir)
	if now := mountstest.Run(t, "stat", "-c", "%y %z", copied); now != sum {
		t.Error("the image was changed")
	}
}

func TestThePartitionsOfADiskWithLargeSectorsAreFound(t *testing.T) {
	image := mountstest.Image(t, 256<<20)
	dev := mountstest.Run(t, "losetup", "--find", "--show", "--sector-size", "4096", image)
	detach := func() { mountstest.Run(t, "losetup", "--detach", dev) }
	mountstest.Run(t, "sh", "-c", "printf 'label: gpt\nstart=256,size=32768\n' | sfdisk -q --no-reread "+dev)
	detach()
	part := mountstest.Image(t, 128<<20)
	mountstest.Run(t, "mkfs.ext4", "-q", "-F", part)
	mountstest.Run(t, "dd", "if="+part, "of="+image, "bs=1M", "seek=1", "conv=notrunc", "status=none")
	dir := t.TempDir()
	shown, err := browse.Mount(t.Context(), image, dir, browse.Options{})
	if err != nil || len(shown) != 1 || shown[0].Partition != 1 {
		t.Fatalf("%+v, %v", shown, err)
	}
	unmount(t, dir)
}
