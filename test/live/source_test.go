package live_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"tidemark/block"
)

// resize gives the disk below a loop device another size.
func resize(t testing.TB, m mirrored, size int64) {
	t.Helper()
	if err := os.Truncate(filepath.Join(m.dir, "source.img"), size); err != nil {
		t.Fatal(err)
	}
	must(t, "losetup", "--set-capacity", m.dev)
}

func TestSourceThatWasResizedIsComparedAndFollowed(t *testing.T) {
	for _, tracker := range []string{"bpf", "scan"} {
		t.Run(tracker, func(t *testing.T) {
			dir := scratch(t)
			m := mirrored{newProgram(t, dir), dir, loop(t, dir, 64*mib), filepath.Join(dir, "mirror.img")}
			fill(t, m.dev, 0, 32*mib)
			m.mirror(t, "--tracker", tracker, m.dev, m.image)
			before := int64(64 * mib)
			for _, size := range []int64{80 * mib, 80*mib + 512*3, 40 * mib, 16 * mib, 64 * mib} {
				resize(t, m, size)
				fill(t, m.dev, 3*mib, mib)
				fill(t, m.dev, size/4096*4096-mib, mib)
				args := []string{"--tracker", tracker, m.dev, m.image}
				if size < before {
					// The end of the mirror is the only copy of what was cut off.
					m.failsAsOld(t, exitRefused, []string{"has shrunk"}, args[:2]...)
					args = append(args, "--force")
				}
				before = size
				rep := m.mirror(t, args...)
				if rep.Mode != "scan" {
					t.Errorf("mode %s after a resize to %d", rep.Mode, size)
				}
				if tracker == "bpf" && !strings.Contains(rep.MarkLost, "resized") {
					t.Errorf("it said %q", rep.MarkLost)
				}
				sameContent(t, m.dev, m.image)
				m.exits(t, exitOK, nil, "verify", m.image)
				fill(t, m.dev, 5*mib, mib)
				rep = m.mirror(t, "--tracker", tracker, m.dev, m.image)
				if tracker == "bpf" && rep.Mode != "incremental" {
					t.Errorf("mode %s after the run that followed", rep.Mode)
				}
				sameContent(t, m.dev, m.image)
			}
		})
	}
}

// Logical sectors of more than 4096 bytes came with Linux 6.15.
func TestDisksWithLargeSectorsAreMirrored(t *testing.T) {
	for _, sector := range []string{"4096", "16384"} {
		for _, target := range []string{"image", "device"} {
			t.Run(target+" "+sector, func(t *testing.T) {
				dir := scratch(t)
				m := mirrored{newProgram(t, dir), dir, loopWith(t, dir, 64*mib, "--sector-size", sector), filepath.Join(dir, "mirror.img")}
				if target == "device" {
					m.image = loopWith(t, folder(t, dir, "target"), 64*mib, "--sector-size", sector)
				}
				fill(t, m.dev, 0, 32*mib)
				m.mirror(t, m.dev, m.image)
				fill(t, m.dev, 5*mib, 16<<10)
				fill(t, m.dev, 64*mib-16<<10, 16<<10)
				m.recovers(t, "incremental")
				m.exits(t, exitOK, nil, "verify", m.image)
				m.exits(t, exitOK, nil, "verify", m.dev, "--against", m.image)
			})
		}
	}
}

func TestSourceResizedDuringARunLeavesTheOldMirror(t *testing.T) {
	for _, size := range []int64{48 * mib, 96 * mib} {
		dir := scratch(t)
		m := mirrored{newProgram(t, dir), dir, loop(t, dir, 64*mib), filepath.Join(dir, "mirror.img")}
		fill(t, m.dev, 0, 64*mib)
		m.mirror(t, m.dev, m.image)
		was, err := lookAt(m.image)
		if err != nil {
			t.Fatal(err)
		}
		fill(t, m.dev, 0, 64*mib)
		journal := m.image + ".tidemark/journal"
		r := m.start(t, "mirror", "--bwlimit", "40MB", m.dev, m.image)
		until(t, "the run is copying", func() bool { return allocated(journal) > 0 })
		resize(t, m, size)
		r.end(t).want(t, exitError, "changed its size during the run")
		sameBytes(t, was, m.image)
		if rep := m.mirror(t, "--force", m.dev, m.image); rep.Mode != "scan" {
			t.Errorf("mode %s", rep.Mode)
		}
		m.recovers(t, "incremental")
	}
}

func TestSourceThatVanishedIsAnErrorAndTheTargetStays(t *testing.T) {
	dir := scratch(t)
	part := partitioned(t, dir, 64*mib)
	disk := strings.TrimSuffix(part, "p2")
	m := mirrored{newProgram(t, dir), dir, part, filepath.Join(dir, "mirror.img")}
	fill(t, part, 0, 16*mib)
	m.mirror(t, part, m.image)
	was := look(t, m.beside()...)
	must(t, "partx", "--delete", disk)
	m.exits(t, exitError, []string{part, "no such file"}, "mirror", part, m.image)
	untouched(t, was, m.beside()...)
	m.exits(t, exitOK, nil, "verify", m.image)
	must(t, "partx", "--update", disk)
	m.recovers(t, "incremental")
}

func TestSourceThatDiesDuringARunIsAnErrorAndTheTargetStays(t *testing.T) {
	dir := scratch(t)
	dev, im := faulty(t, dir, 64*mib)
	m := mirrored{newProgram(t, dir), dir, dev, filepath.Join(dir, "mirror.img")}
	fill(t, dev, 0, 32*mib)
	m.mirror(t, dev, m.image)
	fill(t, dev, 4*mib, 4*mib)
	was, err := lookAt(m.image)
	if err != nil {
		t.Fatal(err)
	}
	im.hang(t)
	r := m.start(t, "mirror", m.dev, m.image)
	<-im.waited
	im.abort(t)
	r.end(t).want(t, exitError, dev, "input/output error")
	sameBytes(t, was, m.image)
	m.exits(t, exitOK, nil, "verify", m.image)
	if f := m.run(t, "mirror", "--force", "--tracker", "scan", m.dev, m.image); f.code != exitError {
		t.Errorf("exit code %d: %s", f.code, f.err)
	}
	sameBytes(t, was, m.image)
}

func TestPassingWritersAreNoticedWhileFrozen(t *testing.T) {
	dir := scratch(t)
	part := partitioned(t, dir, diskSize)
	disk := strings.TrimSuffix(part, "p2")
	m := mirrored{newProgram(t, dir), dir, disk, filepath.Join(dir, "mirror.img")}
	mount(t, "ext4", part, dir)
	m.mirror(t, disk, m.image)
	was, err := lookAt(m.image)
	if err != nil {
		t.Fatal(err)
	}
	// Past the filesystem, which lies on the other partition. A freeze lasts some
	// milliseconds: the writers must be there in every one of them.
	passing, err := block.Open(disk+"p1", block.Options{Write: true, Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	defer passing.Close()
	var stop atomic.Bool
	var writers sync.WaitGroup
	for n := range int64(4) {
		writers.Go(func() {
			for buf := block.AlignedBuffer(4096); !stop.Load(); buf[0]++ {
				if _, err := passing.WriteAt(buf, (4+n)*mib); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	f := m.run(t, "mirror", disk, m.image)
	scan := m.run(t, "mirror", "--tracker", "scan", disk, m.image)
	stop.Store(true)
	writers.Wait()
	for _, f := range []finished{f, scan} {
		f.want(t, exitError)
		if !strings.Contains(f.err, "stood still") && !strings.Contains(f.err, "stand still") {
			t.Errorf("it said %s", f.err)
		}
	}
	sameBytes(t, was, m.image)
	m.exits(t, exitOK, nil, "verify", m.image)
	m.mirror(t, disk, m.image)
}

func TestSwapOnTheSourceIsTold(t *testing.T) {
	dir := scratch(t)
	part := partitioned(t, dir, diskSize)
	disk := strings.TrimSuffix(part, "p2")
	p := newProgram(t, dir)
	mount(t, "ext4", part, dir)
	must(t, "mkswap", disk+"p1")
	must(t, "swapon", "--priority", "0", disk+"p1")
	t.Cleanup(func() { must(t, "swapoff", disk+"p1") })
	p.exits(t, exitOK, []string{"swap in use", disk + "p1"}, "mirror", disk, filepath.Join(dir, "mirror.img"))
	p.exits(t, exitOK, nil, "verify", filepath.Join(dir, "mirror.img"))
}
