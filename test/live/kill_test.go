package live_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	killsPerRound = 14 // at least
	killDiskSize  = 128 * mib
	// thawLimit is far above what the watchdog needs once its process is dead, and
	// far below maxFreeze, so that it is not that which thaws.
	thawLimit = 10 * time.Second
	maxFreeze = "2m"
)

// A writer writes and syncs all the time, and counts.
func writer(t *testing.T, at string) *atomic.Int64 {
	t.Helper()
	f, err := os.Create(filepath.Join(at, "written"))
	if err != nil {
		t.Fatal(err)
	}
	var count atomic.Int64
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer f.Close()
		for data := make([]byte, 4096); !stop.Load(); count.Add(1) {
			binary.LittleEndian.PutUint64(data, uint64(count.Load()))
			_, err := f.WriteAt(data, count.Load()%64<<12)
			if err == nil {
				err = f.Sync()
			}
			if err != nil {
				t.Errorf("writer: %v", err)
				return
			}
		}
	}()
	t.Cleanup(func() { stop.Store(true); <-done })
	return &count
}

// churn makes, overwrites, renames and removes small files all the time: a load
// that leaves the machine to those who are to be killed.
func churn(t *testing.T, at string) {
	t.Helper()
	var stop atomic.Bool
	done := make(chan struct{})
	seed := rand.Uint64()
	go func() {
		defer close(done)
		random := rand.New(rand.NewPCG(seed, 0))
		name := func() string { return filepath.Join(at, fmt.Sprintf("churn%d", random.IntN(300))) }
		for data := make([]byte, 64<<10); !stop.Load(); time.Sleep(time.Millisecond) {
			binary.LittleEndian.PutUint64(data[4096:], random.Uint64())
			err := os.WriteFile(name(), data[:4096+random.IntN(60<<10)], 0o600)
			if random.IntN(3) == 0 {
				os.Rename(name(), name()) // it need not exist
			}
			if random.IntN(8) == 0 {
				os.Remove(name())
			}
			if err != nil {
				t.Errorf("churn: %v", err)
				return
			}
		}
	}()
	t.Cleanup(func() { stop.Store(true); <-done })
}

// wantWritable wants a write that begins now to end within the limit.
func wantWritable(t *testing.T, count *atomic.Int64, limit time.Duration) {
	t.Helper()
	before, end := count.Load(), time.Now().Add(limit)
	for count.Load() < before+2 {
		if time.Now().After(end) {
			t.Fatalf("still frozen after %v", limit)
		}
		time.Sleep(time.Millisecond)
	}
}

// folderWatch sends the name of each file that is made in, or renamed into, the
// folders.
func folderWatch(t *testing.T, paths ...string) <-chan string {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if _, err := unix.InotifyAddWatch(fd, path, unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
			t.Fatal(path, err)
		}
	}
	f := os.NewFile(uintptr(fd), "inotify")
	names, done := make(chan string, 1024), make(chan struct{})
	go func() {
		defer close(done)
		for buf := make([]byte, 1<<16); ; {
			n, err := f.Read(buf)
			if err != nil {
				return
			}
			for _, name := range inotifyNames(buf[:n]) {
				select {
				case names <- name:
				default: // nobody waits for so many
				}
			}
		}
	}()
	t.Cleanup(func() { f.Close(); <-done })
	return names
}

// inotifyNames reads the names in a list of struct inotify_event, whose length is
// its last field, at byte 12 of 16.
func inotifyNames(b []byte) []string {
	var names []string
	for len(b) >= unix.SizeofInotifyEvent {
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		name, _, _ := bytes.Cut(b[unix.SizeofInotifyEvent:end], []byte{0})
		names = append(names, string(name))
		b = b[end:]
	}
	return names
}

// moment is when a run is killed.
type moment struct {
	name   string
	args   []string      // of mirror, beside source and target
	file   string        // when this appears; "" is when the run begins
	spread time.Duration // and then up to so much later
}

// moments returns one moment of each stage. A hook can kill the program from
// within; what it makes in marks is seen by the watch of the folders.
func moments(at, marks string) []moment {
	const suicide = "kill -KILL $PPID"
	burst := fmt.Sprintf("head -c 16M /dev/urandom >%s/burst; rm -f %s/freezing; : >%s/freezing", at, marks, marks)
	return []moment{
		{name: "any time", spread: 200 * time.Millisecond},
		{name: "copying", file: "journal", spread: 20 * time.Millisecond},
		{name: "just before the freeze", args: []string{"--pre-hook", suicide}},
		{name: "freezing or frozen", args: []string{"--pre-hook", burst}, file: "freezing", spread: 100 * time.Millisecond},
		{name: "just after the thaw", args: []string{"--post-hook", suicide}},
		{name: "frozen", args: []string{"--pre-hook", burst}, file: "freezing", spread: 200 * time.Millisecond},
		{name: "committed", file: "journal.ready", spread: 3 * time.Millisecond},
		{name: "saving the state", file: "state.new", spread: time.Millisecond},
	}
}

// killed starts a run of mirror and kills it at the moment, or finds that it ended
// before.
func (p *program) killed(t *testing.T, m moment, names <-chan string, random *rand.Rand, args ...string) finished {
	t.Helper()
	for len(names) > 0 {
		<-names
	}
	r := p.start(t, append(append([]string{"mirror", "--json"}, m.args...), args...)...)
	for seen := m.file == ""; !seen; {
		select {
		case name := <-names:
			seen = name == m.file
		case <-r.ended: // nothing to commit, perhaps
			seen = true
		}
	}
	if m.spread > 0 {
		select {
		case <-time.After(time.Duration(random.Int64N(int64(m.spread)))):
		case <-r.ended:
		}
		return r.kill(t, syscall.SIGKILL)
	}
	return r.end(t)
}

// proved makes a run that must succeed and proves its mirror as far as that can
// be done while the source is in use.
func (p *program) proved(t *testing.T, dev, image string) told {
	t.Helper()
	rep := p.mirror(t, dev, image)
	p.exits(t, exitOK, nil, "verify", image)
	must(t, "e2fsck", "-fn", image)
	return rep
}

func TestKilledAnywhereNothingIsLostAndNothingStaysFrozen(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	dev := loop(t, dir, killDiskSize)
	must(t, "mkfs.ext4", "-q", "-F", dev)
	at, marks := folder(t, dir, "mnt"), folder(t, dir, "marks")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	rounds := 2
	if *runs > defaultRuns {
		rounds = *runs
	}
	for round := range rounds {
		image := filepath.Join(dir, fmt.Sprintf("mirror%d.img", round))
		ok := t.Run(fmt.Sprintf("round %d", round), func(t *testing.T) {
			must(t, "mount", dev, at)
			t.Cleanup(func() { must(t, "umount", at) })
			k := &killing{program: p, source: dev, image: image, written: writer(t, at), random: random}
			if *runs > defaultRuns {
				load(t, at)
			} else {
				churn(t, at)
			}
			k.firstCopy(t)
			k.updates(t, moments(at, marks), marks, 5*round)
			p.proved(t, dev, image)
		})
		if !ok {
			return
		}
		// Nobody writes any more: now the mirror must equal the source as it is.
		if rep := p.mirror(t, dev, image); rep.Mode != "incremental" {
			t.Fatalf("mode %s: %s", rep.Mode, rep.MarkLost)
		}
		sameContent(t, dev, image)
		must(t, "e2fsck", "-fn", image)
		if err := os.Remove(image); err != nil {
			t.Fatal(err)
		}
	}
}

// killing is one round: one mirror of one busy source.
type killing struct {
	*program
	source, image string
	written       *atomic.Int64
	random        *rand.Rand
	killed        int
}

// kill kills one run, and wants the filesystem to be in use again.
func (k *killing) kill(t *testing.T, m moment, names <-chan string) {
	t.Helper()
	f := k.program.killed(t, m, names, k.random, "--max-freeze", maxFreeze, k.source, k.image)
	switch f.code {
	case exitKilled:
		k.killed++
	case exitOK:
	default:
		t.Fatalf("%s: exit code %d\n%s", m.name, f.code, f.err)
	}
	wantWritable(t, k.written, thawLimit)
}

func (k *killing) firstCopy(t *testing.T) {
	t.Helper()
	for range 3 {
		k.kill(t, moment{name: "first copy", spread: 200 * time.Millisecond}, nil)
	}
	k.proved(t, k.source, k.image)
}

func (k *killing) updates(t *testing.T, all []moment, marks string, first int) {
	t.Helper()
	names := folderWatch(t, k.image+".tidemark", marks)
	for i := 0; k.killed < killsPerRound; i++ {
		if i > 4*killsPerRound {
			t.Fatal("most runs end before they are killed")
		}
		k.kill(t, all[(first+i)%len(all)], names)
		switch i % 4 {
		case 1: // what the kill left is finished or discarded: old or new
			if !exists(k.image + ".tidemark/journal.ready") { // which verify leaves to mirror
				k.exits(t, exitOK, nil, "verify", k.image)
			}
		case 3: // the others are left for the next run, which may be killed at that
			if rep := k.proved(t, k.source, k.image); rep.Mode != "incremental" {
				t.Fatalf("mode %s: %s", rep.Mode, rep.MarkLost)
			}
		}
	}
}
