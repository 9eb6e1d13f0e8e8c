package live_test

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"tidemark/block"
	"tidemark/transfer/mirror"
	"tidemark/transfer/transaction"
)

// The source stands still here, so that both contents are known to the byte.
func TestKilledWhileCommittingTheTargetIsOldOrNew(t *testing.T) {
	for _, kind := range []string{"image", "device"} {
		t.Run(kind, func(t *testing.T) {
			dir := scratch(t)
			m := mirrored{newProgram(t, dir), dir, loop(t, dir, diskSize), filepath.Join(dir, "mirror.img")}
			beside := m.image + ".tidemark"
			if kind == "device" {
				m.image = loop(t, folder(t, dir, "target"), diskSize)
			}
			fill(t, m.dev, 0, 32*mib)
			m.mirror(t, m.dev, m.image)
			if kind == "device" {
				beside = must(t, "sh", "-c", "echo "+m.stateDir+"/devices/*")
			}
			names := folderWatch(t, beside)
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			stages := []moment{
				{name: "journaling", file: "journal", spread: 40 * time.Millisecond},
				{name: "journaling or applying", file: "journal", spread: 400 * time.Millisecond},
				{name: "applying", file: "journal.ready", spread: 60 * time.Millisecond},
			}
			for i := range 12 {
				stage := stages[i%len(stages)]
				before, err := lookAt(m.image)
				if err != nil {
					t.Fatal(err)
				}
				fill(t, m.dev, random.Int64N(100)*mib, 24*mib)
				after, err := lookAt(m.dev)
				if err != nil {
					t.Fatal(err)
				}
				f := m.killed(t, stage, names, random, m.dev, m.image)
				m.settle(t)
				now, err := lookAt(m.image)
				if err != nil {
					t.Fatal(err)
				}
				if now.hash != before.hash && now.hash != after.hash {
					t.Fatalf("killed while %s (exit code %d): neither old nor new", stage.name, f.code)
				}
				t.Logf("killed while %s (exit code %d): new is %v", stage.name, f.code, now.hash == after.hash)
			}
			m.recovers(t, "incremental")
		})
	}
}

// settle opens the mirror, which finishes or discards what a kill left, without a
// run that would copy anything more.
func (m mirrored) settle(t *testing.T) {
	t.Helper()
	folder := m.image + ".tidemark"
	if !exists(folder) {
		folder = must(t, "sh", "-c", "echo "+m.stateDir+"/devices/*")
	}
	dir, err := transaction.OpenDir(folder, false)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := block.Open(m.image, block.Options{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	store, err := mirror.Open(transaction.Disk{Device: disk}, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(store.Close(), disk.Close(), dir.Close()); err != nil {
		t.Fatal(err)
	}
	m.exits(t, exitOK, nil, "verify", m.image)
}

func TestRestThatDoesNotGetSmallLeavesTheOldMirror(t *testing.T) {
	dir := scratch(t)
	m := mirrored{newProgram(t, dir), dir, loop(t, dir, diskSize), filepath.Join(dir, "mirror.img")}
	at := mount(t, "ext4", m.dev, dir)
	m.mirror(t, m.dev, m.image)
	count := writer(t, at)
	fill(t, filepath.Join(at, "file"), 0, 8*mib)
	// A scan reads all of the disk under the freeze, which takes longer than that.
	m.failsAsOld(t, exitNoConverge, []string{"its changes are not tracked", "which is presumed", "--force-freeze"},
		"--tracker", "scan", "--max-freeze", "1ms")
	wantWritable(t, count, thawLimit)
	rep := m.mirror(t, "--tracker", "scan", "--max-freeze", "1ms", "--force-freeze", m.dev, m.image)
	if rep.Mode != "scan" {
		t.Errorf("mode %s", rep.Mode)
	}
	wantWritable(t, count, thawLimit)
	m.proved(t, m.dev, m.image)
}

func TestRepeatedRunsEndWithASignal(t *testing.T) {
	for _, s := range signals {
		t.Run(s.name, func(t *testing.T) {
			dir := scratch(t)
			m := mirrored{newProgram(t, dir), dir, loop(t, dir, 64*mib), filepath.Join(dir, "mirror.img")}
			at := mount(t, "ext4", m.dev, dir)
			count := writer(t, at)
			r := m.start(t, "mirror", "--every", "10ms", "--json", m.dev, m.image)
			until(t, "it has made five runs", func() bool {
				var st struct {
					Runs []struct{ Outcome string }
				}
				f := m.run(t, "status", "--json", m.image)
				return f.code == exitOK && json.Unmarshal([]byte(f.out), &st) == nil && len(st.Runs) >= 5
			})
			f := r.kill(t, s.signal)
			f.want(t, s.code, "stopped by "+s.name)
			wantWritable(t, count, thawLimit)
			for i, rep := range f.reports(t) {
				if want := map[bool]string{true: "full", false: "incremental"}[i == 0]; rep.Mode != want {
					t.Errorf("run %d: mode %s: %s", i, rep.Mode, rep.MarkLost)
				}
			}
			m.proved(t, m.dev, m.image)
		})
	}
}
