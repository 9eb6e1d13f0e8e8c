package live_test

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/block"
)

func TestFilesystemFrozenBySomeoneElseStaysFrozen(t *testing.T) {
	dir := scratch(t)
	m := mirrored{newProgram(t, dir), dir, loop(t, dir, diskSize), filepath.Join(dir, "mirror.img")}
	at := mount(t, "ext4", m.dev, dir)
	m.mirror(t, m.dev, m.image)
	fill(t, filepath.Join(at, "file"), 0, 4*mib)
	must(t, "fsfreeze", "--freeze", at)
	thaw := func() error { return thawed(at) }
	t.Cleanup(func() { thaw() }) // it may be thawed already
	m.failsAsOld(t, exitBusy, []string{"frozen by someone else", at})
	m.failsAsOld(t, exitBusy, []string{"frozen by someone else"}, "--tracker", "scan")
	if err := thaw(); err != nil {
		t.Errorf("it is no longer frozen: %v", err)
	}
	if rep := m.mirror(t, m.dev, m.image); rep.Mode != "incremental" {
		t.Errorf("mode %s: %s", rep.Mode, rep.MarkLost)
	}
}

// thawed thaws a filesystem, and fails when it is not frozen.
func thawed(at string) error {
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer f.Close()
	const fiThaw = 0xc0045878 // include/uapi/linux/fs.h
	return unix.IoctlSetInt(int(f.Fd()), fiThaw, 0)
}

func TestHooksRunAroundTheFreezeAndAfterEveryFailure(t *testing.T) {
	dir := scratch(t)
	m := mirrored{newProgram(t, dir), dir, loop(t, dir, diskSize), filepath.Join(dir, "mirror.img")}
	at := mount(t, "ext4", m.dev, dir)
	m.mirror(t, m.dev, m.image)
	post := filepath.Join(dir, "post")
	// Both write to what is frozen in between: before it, and after it.
	m.exits(t, exitOK, nil, "mirror", "--pre-hook", "echo quiesced >"+at+"/pre && sync "+at+"/pre",
		"--post-hook", "echo >"+at+"/post && : >"+post, m.dev, m.image)
	if out := must(t, "debugfs", "-R", "cat /pre", m.image); !strings.HasSuffix(out, "quiesced") {
		t.Errorf("what the pre-hook wrote is not in the mirror: %s", out)
	}
	if out := must(t, "debugfs", "-R", "stat /post", m.image); !strings.Contains(out, "File not found") {
		t.Errorf("what the post-hook wrote is in the mirror: %s", out)
	}
	for name, pre := range map[string]string{
		"fails":     "echo out of order >&2; exit 3",
		"is killed": "kill -KILL $$",
	} {
		os.Remove(post)
		fill(t, filepath.Join(at, "file"), 0, mib)
		m.failsAsOld(t, exitError, []string{"pre-hook", "hook failed"}, "--pre-hook", pre, "--post-hook", ": >"+post)
		if !exists(post) {
			t.Errorf("a pre-hook that %s keeps the post-hook from running", name)
		}
	}
	os.Remove(post)
	r := m.start(t, "mirror", "--pre-hook", ": >"+post+".pre; exec sleep 600", "--post-hook", ": >"+post, m.dev, m.image)
	until(t, "the hook hangs", func() bool { return exists(post + ".pre") })
	r.kill(t, syscall.SIGTERM).want(t, exitByTERM)
	if !exists(post) {
		t.Error("a pre-hook that hangs keeps the post-hook from running")
	}
	if err := thawed(at); !errors.Is(err, unix.EINVAL) {
		t.Errorf("it was left frozen: %v", err)
	}
	if rep := m.mirror(t, m.dev, m.image); rep.Mode != "incremental" {
		t.Errorf("mode %s: %s", rep.Mode, rep.MarkLost)
	}
}

func TestWithoutBTFEverythingIsReadAndThatIsSaid(t *testing.T) {
	dir := scratch(t)
	m := mirrored{newProgram(t, dir), dir, loop(t, dir, 64*mib), filepath.Join(dir, "mirror.img")}
	at := mount(t, "ext4", m.dev, dir)
	empty := filepath.Join(dir, "empty")
	fill(t, empty, 0, 0)
	m.program = m.through("unshare", "--mount", "sh", "-c",
		"mount --bind "+empty+` /sys/kernel/btf/vmlinux && exec "$0" "$@"`)
	for i := range 2 {
		fill(t, filepath.Join(at, "file"), int64(i)*mib, mib)
		f := m.exits(t, exitOK, []string{"cannot be tracked", "BTF", "reading all of it"},
			"mirror", "--max-freeze", "30s", m.dev, m.image)
		if !strings.Contains(f.out, "scan, freeze") {
			t.Errorf("it said %s", f.out)
		}
		must(t, "e2fsck", "-fn", m.image)
	}
	m.exits(t, exitError, []string{"BTF", "--tracker scan"}, "mirror", "--tracker", "bpf", m.dev, m.image)
	m.exits(t, exitError, []string{"BTF"}, "track", "start", m.dev)
	m.exits(t, exitOK, nil, "verify", m.image)
}

func TestWithoutPrivilegesItSaysWhatIsMissing(t *testing.T) {
	dir := scratch(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	dev := loop(t, dir, 64*mib)
	at := mount(t, "ext4", dev, dir)
	root := newProgram(t, dir)
	root.mirror(t, dev, filepath.Join(dir, "mirror.img"))

	nobody := root.through("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
	own := folder(t, dir, "own")
	must(t, "chown", "65534:65534", own)
	nobody.dir, nobody.runDir, nobody.stateDir = own, filepath.Join(own, "run"), filepath.Join(own, "state")
	nobody.exits(t, exitError, []string{dev, "permission denied", "run as root"}, "mirror", dev, filepath.Join(own, "mirror.img"))
	if exists(filepath.Join(own, "mirror.img")) {
		t.Error("a target was made")
	}
	// Images of one's own are nobody else's business.
	must(t, "cp", filepath.Join(dir, "mirror.img"), filepath.Join(own, "source.img"))
	must(t, "chown", "65534:65534", filepath.Join(own, "source.img"))
	nobody.exits(t, exitOK, nil, "mirror", "source.img", "copy.img")
	nobody.exits(t, exitOK, nil, "verify", "copy.img", "--against", "source.img")
	vaultOfNobody(t, root, nobody)

	half := root.through("setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon", "--inh-caps=-all")
	was, err := lookAt(filepath.Join(dir, "mirror.img"))
	if err != nil {
		t.Fatal(err)
	}
	fill(t, filepath.Join(at, "file"), 0, mib)
	for _, tracker := range []string{"auto", "scan"} { // neither may track, nor freeze
		half.exits(t, exitError, []string{"operation not permitted", "run as root"},
			"mirror", "--tracker", tracker, dev, filepath.Join(dir, "mirror.img"))
		sameBytes(t, was, filepath.Join(dir, "mirror.img"))
	}
	if rep := root.mirror(t, dev, filepath.Join(dir, "mirror.img")); rep.Mode != "incremental" {
		t.Errorf("mode %s: %s", rep.Mode, rep.MarkLost)
	}
}

func TestTwoRunsOnOneMirrorDoNotMix(t *testing.T) {
	dir := scratch(t)
	m := mirrored{newProgram(t, dir), dir, loop(t, dir, diskSize), filepath.Join(dir, "mirror.img")}
	fill(t, m.dev, 0, 64*mib)
	r := m.start(t, "mirror", "--json", "--bwlimit", "40MB", m.dev, m.image)
	until(t, "the first is copying", func() bool { return allocated(m.image) > 0 })
	m.exits(t, exitBusy, []string{"another run"}, "mirror", m.dev, m.image)
	m.exits(t, exitBusy, []string{"another run"}, "verify", m.image)
	m.exits(t, exitOK, []string{"incomplete", "a run is in progress (pid "}, "status", m.image)
	r.end(t).want(t, exitOK)
	sameContent(t, m.dev, m.image)
	m.recovers(t, "incremental")
}

// One source may have several mirrors, and their runs may overlap.
func TestRunsOnSeveralMirrorsOfOneSource(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	dev := loop(t, dir, 64*mib)
	at := mount(t, "ext4", dev, dir)
	churn(t, at)
	images := []string{filepath.Join(dir, "a.img"), filepath.Join(dir, "b.img"), filepath.Join(dir, "c.img")}
	for range 4 {
		var all []*running
		for _, image := range images {
			all = append(all, p.start(t, "mirror", "--json", dev, image))
		}
		for _, r := range all {
			// Who comes second may find the filesystem frozen by the first.
			if f := r.end(t); f.code != exitOK && f.code != exitBusy {
				t.Errorf("exit code %d\n%s", f.code, f.err)
			}
		}
		for _, image := range images {
			p.proved(t, dev, image)
		}
	}
}

func TestFreedSpaceIsGivenBack(t *testing.T) {
	dir := scratch(t)
	m := mirrored{newProgram(t, dir), dir, loop(t, dir, diskSize), filepath.Join(dir, "mirror.img")}
	at := mount(t, "ext4", m.dev, dir)
	fill(t, filepath.Join(at, "file"), 0, 64*mib)
	m.mirror(t, m.dev, m.image)
	if n := allocated(m.image); n < 64*mib || n > 80*mib {
		t.Fatalf("the mirror takes %d bytes", n)
	}
	if err := os.Remove(filepath.Join(at, "file")); err != nil {
		t.Fatal(err)
	}
	must(t, "sync", "--file-system", at) // what is not committed is not free yet
	must(t, "fstrim", at)
	m.mirror(t, m.dev, m.image)
	if n := allocated(m.image); n > 16*mib {
		t.Errorf("the mirror still takes %d bytes", n)
	}
	must(t, "umount", at)
	m.recovers(t, "incremental")
	must(t, "mount", m.dev, at)
}

// stamped writes a growing number to a file in place, past the page cache, so
// that it is on the disk when the write returns.
func stamped(t *testing.T, path string) func(n uint64) {
	t.Helper()
	fill(t, path, 0, 4096)
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT|unix.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	data := block.AlignedBuffer(4096)
	write := func(n uint64) {
		binary.LittleEndian.PutUint64(data, n)
		if _, err := f.WriteAt(data, 0); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	write(0)
	return write
}

// numberIn reads what stamped wrote from the file in a mirror.
func numberIn(t *testing.T, image string) uint64 {
	t.Helper()
	to := filepath.Join(t.TempDir(), "number")
	must(t, "debugfs", "-R", "dump /number "+to, image)
	b, err := os.ReadFile(to)
	if err != nil || len(b) != 4096 {
		t.Fatalf("%d bytes: %v", len(b), err)
	}
	return binary.LittleEndian.Uint64(b)
}

func TestPairsOfOneRunAreConsistent(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	var images, args []string
	var write []func(uint64)
	for _, name := range []string{"a", "b", "c"} {
		own := folder(t, dir, name)
		dev := loop(t, own, 64*mib)
		write = append(write, stamped(t, filepath.Join(mount(t, "ext4", dev, own), "number")))
		images = append(images, filepath.Join(dir, name+".img"))
		args = append(args, "--pair", dev+"="+filepath.Join(dir, name+".img"))
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := uint64(1); ; n++ {
			for _, w := range write {
				select {
				case <-stop:
					return
				default:
					w(n)
				}
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
	last := uint64(0)
	for range 8 {
		f := p.run(t, append([]string{"mirror", "--json"}, args...)...)
		f.want(t, exitOK)
		if n := len(f.reports(t)); n != len(images) {
			t.Fatalf("%d reports", n)
		}
		a, b, c := numberIn(t, images[0]), numberIn(t, images[1]), numberIn(t, images[2])
		t.Logf("%d %d %d", a, b, c)
		if a < b || b < c || a > c+1 {
			t.Errorf("numbers %d, %d and %d were never on the disks at one time", a, b, c)
		}
		if a <= last {
			t.Errorf("number %d does not follow %d", a, last)
		}
		last = a
		for _, image := range images {
			p.exits(t, exitOK, nil, "verify", image)
			must(t, "e2fsck", "-fn", image)
		}
	}
}

// When one of the pairs fails, none is brought up to date.
func TestFailureOfOnePairLeavesAll(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	dev, im := faulty(t, dir, 32*mib)
	other := loop(t, dir, 32*mib)
	images := []string{filepath.Join(dir, "a.img"), filepath.Join(dir, "b.img")}
	args := []string{"mirror", "--json", "--pair", other + "=" + images[0], "--pair", dev + "=" + images[1]}
	p.exits(t, exitOK, nil, args...)
	was := look(t, images...)
	fill(t, other, 0, mib)
	fill(t, dev, 0, mib)
	im.breakBlock(0)
	p.exits(t, exitError, []string{dev}, args...)
	untouched(t, was, images...)
	im.breakBlock(-1)
	p.exits(t, exitOK, nil, args...)
	sameContent(t, other, images[0])
	sameContent(t, dev, images[1])
}
