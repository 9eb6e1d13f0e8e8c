package live_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"filippo.io/age"

	format "tidemark/format/vault"
	"tidemark/track/bpf"
	"tidemark/transfer/backup"
	"tidemark/transfer/restore"
	"tidemark/vault"
	"tidemark/vault/store"
)

// vaultSourceSize is that of a disk whose points are kept.
const vaultSourceSize = 128 << 20

// livePoints is how many points are made of it.
const livePoints = 3

func TestPointsOfABusyFilesystemEqualOneInstantEach(t *testing.T) {
	dir := scratch(t)
	dev := loop(t, dir, vaultSourceSize)
	r := &rig{source: dev, image: "the vault", track: tracking(t, dir)}
	t.Cleanup(func() {
		if err := bpf.Stop(context.WithoutCancel(t.Context()), dev, r.track); err != nil {
			t.Error(err)
		}
	})
	v := liveVault(t, filepath.Join(dir, "vault"))
	disk, err := v.AddDisk(t.Context(), format.Disk{Name: "busy"})
	if err != nil {
		t.Fatal(err)
	}
	churn(t, mount(t, "ext4", dev, dir))
	var saw [livePoints]fingerprint
	var made [livePoints]vault.Point
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
	for i, p := range made {
		image := filepath.Join(dir, fmt.Sprintf("point%d.img", i))
		_, err := restore.RestorePoint(t.Context(), restore.Point{Vault: v, Address: "vault", Disk: disk, Point: p}, image, restore.Options{StateDir: filepath.Join(dir, "state")})
		if err != nil {
			t.Fatal(err)
		}
		copied, err := readAll(image)
		if err != nil {
			t.Fatal(err)
		}
		saw[i].compare(t, copied)
		must(t, "e2fsck", "-fn", image)
	}
	if sum, err := v.Verify(t.Context(), vault.VerifyOptions{Data: true}); err != nil || sum.Damages > 0 || sum.Points != livePoints {
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
