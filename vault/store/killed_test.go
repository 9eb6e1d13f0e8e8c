package store_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark/extent"
	format "tidemark/format/vault"
	"tidemark/vault"
	"tidemark/vault/store"
)

var serverKills = flag.Int("server-kills", 6, "of each server, under backups and prunes")

// shot is a store whose server is killed while some calls are under way.
type shot struct {
	store.Store
	kill func()
	rng  *rand.Rand
	mu   sync.Mutex
	done int
}

// under has the server killed at some moment of some calls.
func (s *shot) under(call func()) {
	s.mu.Lock()
	now := s.done < *serverKills && s.rng.IntN(8) == 0
	late := time.Duration(s.rng.Int64N(int64(4 * time.Millisecond)))
	if now {
		s.done++
	}
	s.mu.Unlock()
	if !now {
		call()
		return
	}
	var both sync.WaitGroup
	both.Go(call)
	time.Sleep(late)
	s.kill()
	both.Wait()
}

func (s *shot) Put(ctx context.Context, name string, data []byte) (err error) {
	s.under(func() { err = s.Store.Put(ctx, name, data) })
	return err
}

func (s *shot) Get(ctx context.Context, name string, off, n int64, room []byte) (b []byte, err error) {
	s.under(func() { b, err = s.Store.Get(ctx, name, off, n, room) })
	return b, err
}

func (s *shot) List(ctx context.Context, prefix string, each func(store.Info) error) (err error) {
	s.under(func() { err = s.Store.List(ctx, prefix, each) })
	return err
}

func (s *shot) Remove(ctx context.Context, name string) (err error) {
	s.under(func() { err = s.Store.Remove(ctx, name) })
	return err
}

// The server is killed in the middle of whatever backups and prunes ask of it: each of them goes on, every
// point is what it should be, and the vault is whole.
func TestBackupsAndPrunesOutliveServersThatAreKilled(t *testing.T) {
	t.Run("sftp", func(t *testing.T) {
		pid := store.SFTPServer(t)
		s := store.OpenSFTPAt(t, filepath.Join(t.TempDir(), "vault"))
		outlive(t, store.Patient(s, func() {}), func() { store.KillSFTP(t, pid) })
	})
	t.Run("s3", func(t *testing.T) {
		endpoint, kill := store.S3Server(t)
		at := strings.TrimPrefix(endpoint, "http://")
		var one sync.Mutex
		outlive(t, store.Patient(store.OpenS3At(t, endpoint), func() { store.AwaitPort(t, at) }), func() {
			one.Lock()
			defer one.Unlock()
			kill()
		})
	})
}

func outlive(t *testing.T, s store.Store, kill func()) {
	seed := rand.Uint64N(1 << 40)
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	if err := vault.Init(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	aim := &shot{Store: s, kill: kill, rng: rand.New(rand.NewPCG(seed, 2))}
	cache := t.TempDir()
	disk := make([]byte, 4<<20)
	want := map[format.PointName][]byte{}
	for round := 0; aim.done < *serverKills || round < 3; round++ {
		v, err := vault.Open(t.Context(), aim, vault.Options{Cache: cache})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			n := 1 + rng.IntN(1<<20)
			at := rng.IntN(len(disk) - n)
			rand.NewChaCha8([32]byte{byte(rng.Uint32()), byte(rng.Uint32())}).Read(disk[at : at+n])
		}
		p, err := killedBackup(t.Context(), v, disk)
		if err != nil {
			t.Fatal(err)
		}
		want[p.Name] = bytes.Clone(disk)
		for name := range want {
			if len(want) <= 3 {
				break
			}
			delete(want, name)
			if err := v.Forget(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := v.Prune(t.Context(), vault.PruneOptions{Now: round%2 == 0}); err != nil {
			t.Fatal(err)
		}
		all, err := v.Points(t.Context(), format.ID{})
		if err != nil || len(all) != len(want) {
			t.Fatalf("%d points, want %d: %v", len(all), len(want), err)
		}
		for _, p := range all {
			got := make([]byte, len(disk))
			if _, err := v.Reader(t.Context(), p).ReadAt(got, 0); err != nil || !bytes.Equal(got, want[p.Name]) {
				t.Fatalf("%v has other bytes: %v", p.Name, err)
			}
		}
		sum, err := v.Verify(t.Context(), vault.VerifyOptions{Data: true, Damage: func(d vault.Damage) { t.Error(d) }})
		if err := errors.Join(err, v.Close()); err != nil {
			t.Fatalf("%+v, %v", sum, err)
		}
	}
	t.Logf("%d kills", aim.done)
}

// killedBackup makes a point of all that is there.
func killedBackup(ctx context.Context, v *vault.Vault, disk []byte) (p vault.Point, err error) {
	size := int64(len(disk))
	d, err := v.AddDisk(ctx, format.Disk{Name: "disk"})
	if err != nil {
		return p, err
	}
	w, err := v.Begin(ctx, vault.From{Disk: d.ID, Size: size})
	if err != nil {
		return p, err
	}
	if err = w.Copy(bytes.NewReader(disk), extent.NewSet(extent.Extent{Len: size})); err == nil {
		p, err = w.Commit(format.Point{Moment: time.Now()})
	}
	return p, errors.Join(err, w.Close())
}
