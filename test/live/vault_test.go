package live_test

import (
	"context"
	"flag"
	"path/filepath"
	"testing"

	"filippo.io/age"

	format "tidemark/format/vault"
	"tidemark/track/bpf"
	"tidemark/transfer/backup"
	"tidemark/transfer/origin"
	"tidemark/transfer/restore"
	"tidemark/transfer/target"
	"tidemark/vault"
	"tidemark/vault/store"
)

// livePoints is how many points are made of each busy filesystem. CI makes few.
var livePoints = flag.Int("points", 2, "of each busy filesystem")

func TestPointsOfBusyFilesystemsEqualOneInstantEach(t *testing.T) {
	for _, tt := range []struct {
		fs   string
		size int64 // bytes: as small as its mkfs lets it be
	}{{"ext4", 128 << 20}, {"xfs", 304 << 20}, {"btrfs", 128 << 20}} {
		t.Run(tt.fs, func(t *testing.T) {
			pointsOfABusyFilesystem(t, tt.fs, tt.size)
		})
	}
}

func pointsOfABusyFilesystem(t *testing.T, fs string, size int64) {
	dir := scratch(t)
	dev := loop(t, dir, size)
	r := &rig{source: dev, image: "the vault", track: tracking(t, dir)}
	t.Cleanup(func() {
		if err := bpf.Stop(context.WithoutCancel(t.Context()), dev, r.track); err != nil {
			t.Error(err)
		}
	})
	v := liveVault(t, filepath.Join(dir, "vault"))
	disk, err := v.AddDisk(t.Context(), format.Disk{Name: "busy", KnownBy: []string{origin.LastingName(dev)}})
	if err != nil {
		t.Fatal(err)
	}
	churn(t, mount(t, fs, dev, dir))
	saw, made := make([]fingerprint, *livePoints), make([]vault.Point, *livePoints)
	for i := range saw {
		sink, err := backup.Open(t.Context(), v, disk, backup.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var mode string
		saw[i], mode = r.pointOf(t, sink)
		made[i] = sink.Made()
		if want := map[bool]string{true: "full", false: "incremental"}[i == 0]; mode != want {
			t.Fatalf("point %d: mode %s, want %s", i, mode, want)
		}
	}
	// The last one is left to be mounted once its original no longer is.
	image := filepath.Join(dir, "mirror.img")
	for i, p := range made {
		_, err := restore.RestorePoint(t.Context(), restore.Point{Vault: v, Address: "vault", Disk: disk, Point: p}, image,
			restore.Options{StateDir: filepath.Join(dir, "state"), Track: r.track, Overwrite: true})
		if err != nil {
			t.Fatal(err)
		}
		copied, err := readAll(image)
		if err != nil {
			t.Fatal(err)
		}
		saw[i].compare(t, copied)
		checkFilesystem(t, fs, image, dir)
	}
	// What it was restored to goes on as a mirror.
	r.image, r.folder = image, image+target.FolderEnd
	if rep := r.run(t); rep.Mode != "incremental" || rep.Read >= size {
		t.Errorf("the mirror onto the last point: mode %s, read %d bytes of %d", rep.Mode, rep.Read, size)
	}
	if sum, err := v.Verify(t.Context(), vault.VerifyOptions{Data: true}); err != nil || sum.Damages > 0 || sum.Points != *livePoints {
		t.Errorf("%+v, %v", sum, err)
	}
}

// pointOf makes a point, and returns what the source was at its instant.
func (r *rig) pointOf(t *testing.T, sink *backup.Sink) (fingerprint, string) {
	t.Helper()
	saw, rep := r.witnessed(t, sink, func(int64, int64) {})
	t.Logf("%s: %d passes, read %d KiB, stored %d KiB", rep.Mode, rep.Passes, rep.Read>>10, sink.Made().Stored>>10)
	return saw, rep.Mode
}

// liveVault makes and opens a vault in a folder.
func liveVault(t *testing.T, path string) *vault.Vault {
	t.Helper()
	s, err := store.Open(t.Context(), path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	if err := vault.Init(t.Context(), s, id.Recipient()); err != nil {
		t.Fatal(err)
	}
	v, err := vault.Open(t.Context(), s, vault.Options{Identities: []age.Identity{id}, Cache: path + ".cache"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// vaultOfNobody has a vault in a folder that is not root's: he uses it by himself, and root does, too.
func vaultOfNobody(t *testing.T, root, nobody *program) {
	t.Helper()
	pass, source, at := filepath.Join(nobody.dir, "pass"), filepath.Join(nobody.dir, "source.img"), filepath.Join(nobody.dir, "vault")
	must(t, "sh", "-c", "echo secret >"+pass+"; chmod 644 "+pass)
	do := func(who *program, code int, words []string, args ...string) {
		t.Helper()
		who.exits(t, code, words, append(args, "--passphrase-file", pass)...)
	}
	do(nobody, exitOK, nil, "vault", "init", at)
	do(nobody, exitOK, nil, "backup", source, at)
	do(nobody, exitOK, nil, "restore", at, "latest", "back.img")
	sameContent(t, source, filepath.Join(nobody.dir, "back.img"))
	do(nobody, exitOK, nil, "vault", "prune", "--now", at)
	// What root writes there is root's: the other is told so, and root goes on.
	do(root, exitOK, nil, "backup", "--disk", "of-root", source, at)
	do(nobody, exitError, []string{"permission denied"}, "points", at)
	do(root, exitOK, nil, "vault", "verify", "--data", "all", at)
	do(root, exitOK, nil, "prune", "--now", "--keep-last", "1", at)
}
