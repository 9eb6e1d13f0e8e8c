package vault

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"tidemark/extent"
	format "tidemark/format/vault"
	"tidemark/vault/store"
)

var kills = flag.Int("kills", 6, "of processes that back up and prune")

const (
	envWorker = "TIDEMARK_TEST_VAULT"
	killDisk  = 1 << 20 // bytes
)

// TestWorker is no test: it is the process that TestKilledProcessesLeaveNoDamage kills. It backs up,
// forgets and prunes, and prints a byte before each call of the store.
func TestWorker(t *testing.T) {
	at := os.Getenv(envWorker)
	if at == "" {
		t.Skip("it is no test")
	}
	seed, err := strconv.ParseUint(os.Getenv(envWorker+"_SEED"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	s := turns{store.OnFiles(at, store.Local(at)), func() { os.Stdout.Write([]byte{'.'}) }}
	v, err := Open(t.Context(), s, Options{Cache: at + ".cache"})
	if err != nil {
		t.Fatal(err)
	}
	d, err := v.AddDisk(t.Context(), format.Disk{Name: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	disk := make([]byte, killDisk)
	for {
		for range 5 {
			copy(disk[rng.IntN(len(disk)):], noise(byte(rng.Uint32()), 1+rng.IntN(100_000)))
		}
		if err := workerBackup(t, v, d.ID, disk); err != nil {
			t.Fatal(err)
		}
		points, err := v.Points(t.Context(), d.ID)
		if err != nil {
			t.Fatal(err)
		}
		for len(points) > 2 {
			if err := v.Forget(t.Context(), points[0].Name); err != nil {
				t.Fatal(err)
			}
			points = points[1:]
		}
		if _, err := v.Prune(t.Context(), PruneOptions{Now: rng.IntN(2) == 0}); err != nil {
			t.Fatal(err)
		}
	}
}

// workerBackup makes a point that says in a tag what its bytes are.
func workerBackup(t *testing.T, v *Vault, disk format.ID, data []byte) error {
	w, err := v.Begin(t.Context(), From{Disk: disk, Size: killDisk})
	if err != nil {
		return err
	}
	err = w.Copy(bytes.NewReader(data), extent.NewSet(extent.Extent{Len: killDisk}))
	if err == nil {
		_, err = w.Commit(format.Point{Moment: time.Now(), Tags: []string{fmt.Sprintf("%x", sha256.Sum256(data))}})
	}
	return errors.Join(err, w.Close())
}

// Processes that back up and prune are killed at any moment: every point is whole, and the next process
// goes on.
func TestKilledProcessesLeaveNoDamage(t *testing.T) {
	s, root := folder(t)
	seed := seeds(1)[0]
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	for round := range *kills {
		var said bytes.Buffer
		cmd := exec.Command(os.Args[0], "-test.run=^TestWorker$", "-test.count=1")
		cmd.Env = append(os.Environ(), envWorker+"="+root, fmt.Sprintf("%s_SEED=%d", envWorker, rng.Uint64()))
		cmd.Stderr = &said
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		calls, err := io.CopyN(io.Discard, out, 1+rng.Int64N(150))
		if err != nil {
			t.Errorf("round %d: it ended by itself after %d calls: %s", round, calls, said.Bytes())
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		cmd.Wait()
		afterKill(t, s)
	}
}

// afterKill lets go of who died, and holds each point against its tag.
func afterKill(t *testing.T, s store.Store) {
	t.Helper()
	v, err := Open(t.Context(), s, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	held, err := v.Leases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range held {
		if !l.Gone {
			t.Errorf("%+v is not gone", l)
		}
		if err := v.Unlock(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	points, err := v.Points(t.Context(), format.ID{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range points {
		if sum := fmt.Sprintf("%x", sha256.Sum256(at(t, v, p, 0, killDisk))); sum != p.Tags[0] {
			t.Errorf("%v has other bytes", p.Name)
		}
	}
	if sum, err := v.Verify(t.Context(), VerifyOptions{Data: true, Damage: func(d Damage) { t.Errorf("%+v", d) }}); err != nil || sum.Points != len(points) {
		t.Errorf("%+v, %v", sum, err)
	}
}
