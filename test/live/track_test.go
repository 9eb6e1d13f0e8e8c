package live_test

import (
	"encoding/json"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// followed is what "track start" and "track changes" say.
type followed struct {
	Mark    string     `json:"mark"`
	Until   string     `json:"until"`
	Extents [][2]int64 `json:"extents"`
}

func (p *program) track(t *testing.T, args ...string) followed {
	t.Helper()
	f := p.exits(t, exitOK, nil, append([]string{"track"}, args...)...)
	var said followed
	if err := json.Unmarshal([]byte(f.out), &said); err != nil {
		t.Fatalf("%v in %s", err, f.out)
	}
	return said
}

// wantExtents wants what changed to cover each block, given by its offset, and
// little else.
func (f followed) wantExtents(t *testing.T, blocks ...int64) {
	t.Helper()
	var bytes int64
	for _, off := range blocks {
		found := false
		for _, e := range f.Extents {
			found = found || e[0] <= off && off < e[0]+e[1]
		}
		if !found {
			t.Errorf("the block at %d is missing in %v", off, f.Extents)
		}
	}
	for _, e := range f.Extents {
		bytes += e[1]
	}
	if bytes > int64(len(blocks))*4096 {
		t.Errorf("%d bytes for %d blocks: %v", bytes, len(blocks), f.Extents)
	}
}

func TestTrackingOutlivesTheProgram(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	dev := loop(t, dir, 64*mib)
	first := p.track(t, "start", "--json", dev)
	fill(t, dev, mib, 4096)
	second := p.track(t, "start", "--json", dev) // no error, and no new beginning
	fill(t, dev, 9*mib, 4096)
	p.track(t, "changes", "--json", dev, "--since", first.Mark).wantExtents(t, mib, 9*mib)
	said := p.track(t, "changes", "--json", dev, "--since", second.Mark)
	said.wantExtents(t, 9*mib)
	p.track(t, "changes", "--json", dev, "--since", said.Until).wantExtents(t)
	fill(t, dev, 2*mib, 4096)
	p.track(t, "changes", "--json", dev, "--since", said.Until).wantExtents(t, 2*mib)
	p.track(t, "changes", "--json", dev, "--since", first.Mark).wantExtents(t, mib, 2*mib, 9*mib)
	p.exits(t, exitOK, []string{first.Mark, second.Mark}, "track", "status", dev)
	p.exits(t, exitOK, nil, "track", "stop", dev)
	p.exits(t, exitMarkLost, []string{"mark lost", "not tracked"}, "track", "changes", dev, "--since", first.Mark)
	p.track(t, "start", "--json", dev)
	p.exits(t, exitMarkLost, []string{"mark lost"}, "track", "changes", dev, "--since", first.Mark)
}

func TestTrackingOutlivesKills(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	dev := loop(t, dir, 64*mib)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var first followed
	var blocks []int64
	for i := range 42 {
		if i%14 == 0 { // only the newest 16 marks are kept
			if blocks != nil {
				p.track(t, "changes", "--json", dev, "--since", first.Mark).wantExtents(t, blocks...)
			}
			first, blocks = p.track(t, "start", "--json", dev), nil
		}
		off := random.Int64N(64*mib/4096) * 4096
		fill(t, dev, off, 4096)
		blocks = append(blocks, off)
		args := []string{"start", dev}
		if random.IntN(2) == 0 {
			args = []string{"changes", dev, "--since", first.Mark}
		}
		r := p.start(t, append([]string{"track"}, args...)...)
		select {
		case <-time.After(time.Duration(random.Int64N(int64(60 * time.Millisecond)))):
		case <-r.ended:
		}
		if f := r.kill(t, syscall.SIGKILL); f.code != exitKilled && f.code != exitOK {
			t.Fatalf("%v: exit code %d\n%s", args, f.code, f.err)
		}
	}
	p.track(t, "changes", "--json", dev, "--since", first.Mark).wantExtents(t, blocks...)
}

func TestAnotherDiskUnderTheNameHasNoMarks(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	dev := loop(t, dir, 64*mib)
	image := filepath.Join(dir, "mirror.img")
	fill(t, dev, 0, 8*mib)
	p.mirror(t, dev, image)
	mark := p.track(t, "start", "--json", dev).Mark
	must(t, "losetup", "--detach", dev)
	fill(t, filepath.Join(dir, "source.img"), mib, mib) // nobody sees this
	must(t, "losetup", "--direct-io=on", dev, filepath.Join(dir, "source.img"))
	f := p.exits(t, exitMarkLost, []string{"mark lost"}, "track", "changes", dev, "--since", mark)
	if !strings.Contains(f.err, "plugged") {
		t.Errorf("it said %s", f.err)
	}
	rep := p.mirror(t, dev, image)
	if rep.Mode != "scan" || rep.MarkLost == "" || rep.Written > 2*mib {
		t.Errorf("%+v", rep)
	}
	sameContent(t, dev, image)
	if rep := p.mirror(t, dev, image); rep.Mode != "incremental" {
		t.Errorf("mode %s: %s", rep.Mode, rep.MarkLost)
	}
	p.exits(t, exitOK, nil, "verify", image)
}
