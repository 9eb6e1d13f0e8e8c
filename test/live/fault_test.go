package live_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/format/state"
	"tidemark/track"
	"tidemark/transfer"
	"tidemark/transfer/mirror"
	"tidemark/transfer/transaction"
)

// mirrored is a mirror of a disk that nobody else uses.
type mirrored struct {
	*program
	dir, dev, image string
}

// beside is all that a mirror consists of.
func (m mirrored) beside() []string { return []string{m.image, m.image + ".tidemark"} }

// failsAsOld wants a run to fail and the mirror's content to stay.
func (m mirrored) failsAsOld(t *testing.T, code int, words []string, args ...string) {
	t.Helper()
	was, err := lookAt(m.image)
	if err != nil {
		t.Fatal(err)
	}
	m.exits(t, code, words, append(append([]string{"mirror"}, args...), m.dev, m.image)...)
	sameBytes(t, was, m.image)
	m.exits(t, exitOK, nil, "verify", m.image)
}

// recovers wants the next run to be right, in the mode given.
func (m mirrored) recovers(t *testing.T, mode string) told {
	t.Helper()
	rep := m.mirror(t, m.dev, m.image)
	if rep.Mode != mode {
		t.Errorf("mode %s, want %s: %s", rep.Mode, mode, rep.MarkLost)
	}
	sameContent(t, m.dev, m.image)
	m.exits(t, exitOK, nil, "verify", m.image)
	return rep
}

func TestUnreadableBlockIsNamedAndTheTargetStays(t *testing.T) {
	dir := scratch(t)
	dev, im := faulty(t, dir, 64*mib)
	m := mirrored{newProgram(t, dir), dir, dev, filepath.Join(dir, "mirror.img")}
	const first, second = 40*mib + 5*4096, 3*mib + 4096
	fill(t, dev, 0, 64*mib)
	im.breakBlock(first)
	post := filepath.Join(dir, "post")
	words := func(off int64) []string {
		return []string{dev, fmt.Sprintf("4096 bytes at offset %d", off), "input/output error"}
	}
	m.exits(t, exitError, words(first), "mirror", dev, m.image)
	m.exits(t, exitError, words(first), "mirror", dev, m.image)
	im.breakBlock(-1)
	if rep := m.recovers(t, "resume"); rep.Read > 60*mib {
		t.Errorf("%d bytes were read again", rep.Read)
	}
	fill(t, dev, 2*mib, 4*mib)
	im.breakBlock(second)
	m.failsAsOld(t, exitError, words(second))
	m.failsAsOld(t, exitError, words(second), "--tracker", "scan", "--post-hook", ": >"+post)
	if !exists(post) {
		t.Error("the post-hook did not run")
	}
	im.breakBlock(-1)
	m.recovers(t, "incremental")
}

func TestFullTargetDiskInTheFirstCopy(t *testing.T) {
	dir := scratch(t)
	small := tmpfs(t, dir, "40m")
	m := mirrored{newProgram(t, dir), dir, loop(t, dir, diskSize), filepath.Join(small, "mirror.img")}
	fill(t, m.dev, 0, 64*mib)
	for range 2 {
		m.exits(t, exitError, []string{"no space left", "make room"}, "mirror", m.dev, m.image)
	}
	grow(t, small, "200m")
	// Not even how far it came could be noted on a disk that is full.
	if rep := m.mirror(t, m.dev, m.image); rep.Mode != "resume" && rep.Mode != "full" || rep.Written > 40*mib {
		t.Errorf("mode %s, %d bytes were written again", rep.Mode, rep.Written)
	}
	m.recovers(t, "incremental")
}

func TestFullTargetDiskInTheJournal(t *testing.T) {
	dir := scratch(t)
	small := tmpfs(t, dir, "80m")
	m := mirrored{newProgram(t, dir), dir, loop(t, dir, diskSize), filepath.Join(small, "mirror.img")}
	fill(t, m.dev, 0, 64*mib)
	m.recovers(t, "full")
	fill(t, m.dev, 8*mib, 40*mib)
	for range 2 {
		m.failsAsOld(t, exitError, []string{"no space left", "make room"})
	}
	grow(t, small, "200m")
	m.recovers(t, "incremental")
}

// halfApplied returns a mirror whose update is committed, and that was cut off
// before it reached the target.
func halfApplied(t *testing.T) mirrored {
	t.Helper()
	dir := scratch(t)
	m := mirrored{newProgram(t, dir), dir, loop(t, dir, diskSize), filepath.Join(dir, "mirror.img")}
	fill(t, m.dev, 0, 16*mib)
	m.mirror(t, m.dev, m.image)
	fill(t, m.dev, 0, 8*mib)
	commitOnly(t, m, 8*mib, func(s state.Source) state.Source { return s })
	if !exists(m.image + ".tidemark/journal.ready") {
		t.Fatal("nothing was committed")
	}
	return m
}

// commitOnly commits the first bytes of the source to the mirror, as a copy of origin, and
// stops there.
func commitOnly(t *testing.T, m mirrored, bytes int64, origin func(state.Source) state.Source) {
	t.Helper()
	dir, err := transaction.OpenDir(m.image+".tidemark", false)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	disk, err := block.Open(m.image, block.Options{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	store, err := mirror.Open(transaction.Disk{Device: disk}, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	sink := mirror.Sink{Store: store, Origin: origin(store.State().Source)}
	u, _, err := sink.Begin(t.Context(), disk.Size(), func(transfer.Event) {})
	if err != nil {
		t.Fatal(err)
	}
	source, err := block.Open(m.dev, block.Options{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	buf := block.AlignedBuffer(mib)
	for off := int64(0); off < bytes; off += mib {
		if _, err := source.ReadAt(buf, off); err != nil {
			t.Fatal(err)
		}
		if _, err := u.Put([]transfer.Chunk{{Extent: extent.Extent{Off: off, Len: mib}, Data: buf}}); err != nil {
			t.Fatal(err)
		}
	}
	commit := transfer.Commit{Mark: track.Mark(store.State().Mark), Time: store.State().Time, Run: transfer.RunRecord{Outcome: "ok"}}
	if err := u.Seal(commit); err != nil {
		t.Fatal(err)
	}
	if err := u.Publish(); err != nil {
		t.Fatal(err)
	}
}

func TestCommittedUpdateIsFinishedByTheNextRun(t *testing.T) {
	m := halfApplied(t)
	m.exits(t, exitError, []string{"waits to be finished"}, "verify", m.image)
	m.exits(t, exitOK, []string{"the next mirror run finishes it"}, "status", m.image)
	m.exits(t, exitOK, []string{"finished a change"}, "mirror", m.dev, m.image)
	m.recovers(t, "incremental")
	m.exits(t, exitOK, []string{"pending: committed, and finished when"}, "status", m.image)
}

// What waits for an image would spoil a copy that was restored in its place.
func TestCommittedUpdateIsNotForAnotherImage(t *testing.T) {
	m := halfApplied(t)
	must(t, "sh", "-c", "cp "+m.image+" "+m.dir+"/x && mv "+m.dir+"/x "+m.image)
	was := look(t, m.beside()...)
	m.exits(t, exitRefused, []string{"not the target that the change was made for", "hint: ", "--force"}, "mirror", m.dev, m.image)
	untouched(t, was, m.beside()...)
	m.exits(t, exitOK, nil, "mirror", "--force", m.dev, m.image)
	m.recovers(t, "incremental")
}

// The power may go when the state counts an update already and its journal is still
// there: nothing waits to be finished then.
func TestJournalOfACountedUpdateIsNotPending(t *testing.T) {
	m := halfApplied(t)
	journal := filepath.Join(m.image+".tidemark", "journal.ready")
	content, err := os.ReadFile(journal)
	if err != nil {
		t.Fatal(err)
	}
	m.exits(t, exitOK, []string{"finished a change"}, "mirror", m.dev, m.image)
	for _, args := range [][]string{{"verify", m.image}, {"mirror", m.dev, m.image}} {
		if err := os.WriteFile(journal, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if f := m.exits(t, exitOK, []string{"a copy of"}, "status", m.image); strings.Contains(f.out, "finishes it") {
			t.Errorf("status: %s", f.out)
		}
		if f := m.exits(t, exitOK, nil, args...); strings.Contains(f.out, "finished a change") || exists(journal) {
			t.Errorf("%s: the journal is still there, or was applied again:\n%s", args[0], f.out)
		}
	}
	m.recovers(t, "incremental")
}

func TestUpdateThatTheTargetHasNoRoomForLeavesItOld(t *testing.T) {
	dir := scratch(t)
	small := tmpfs(t, dir, "64m")
	m := mirrored{newProgram(t, dir), dir, loop(t, dir, diskSize), filepath.Join(small, "mirror.img")}
	fill(t, m.dev, 0, 16*mib)
	m.mirror(t, m.dev, m.image)
	before, err := lookAt(m.image)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, m.dev, 0, 8*mib)
	fill(t, m.dev, 64*mib, 20*mib) // takes room in the target, besides in the journal
	m.exits(t, exitError, []string{"no space left"}, "mirror", m.dev, m.image)
	if exists(m.image + ".tidemark/journal.ready") {
		t.Fatal("committed without room for it")
	}
	after, err := lookAt(m.image)
	if err != nil {
		t.Fatal(err)
	}
	if after.hash != before.hash {
		t.Fatal("the target changed")
	}
	m.exits(t, exitOK, nil, "verify", m.image)
	grow(t, small, "200m")
	m.exits(t, exitOK, nil, "mirror", m.dev, m.image)
	m.recovers(t, "incremental")
}

func TestDamagedFilesBesideAMirrorAreRefusedAndNothingIsWritten(t *testing.T) {
	truncate := func(size int64) func(testing.TB, string) {
		return func(t testing.TB, path string) {
			t.Helper()
			if err := os.Truncate(path, size); err != nil {
				t.Fatal(err)
			}
		}
	}
	flip := func(off int64) func(testing.TB, string) {
		return func(t testing.TB, path string) { t.Helper(); damage(t, path, off) }
	}
	remove := func(t testing.TB, path string) {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	m := halfApplied(t)
	good := filepath.Join(m.dir, "good")
	must(t, "cp", "-a", m.image+".tidemark", good)
	for _, tt := range []struct {
		file, how string
		harm      func(testing.TB, string)
	}{
		{"state", "emptied", truncate(0)},
		{"state", "cut short", truncate(100)},
		{"state", "a byte changed", flip(60)},
		{"state", "lost", remove},
		{"sums", "emptied", truncate(0)},
		{"sums", "cut in its header", truncate(20)},
		{"sums", "magic changed", flip(0)},
		{"sums", "header changed", flip(17)},
		{"sums", "lost", remove},
		{"journal.ready", "emptied", truncate(0)},
		{"journal.ready", "cut in its header", truncate(40)},
		{"journal.ready", "cut in its middle", truncate(10 * mib)},
		{"journal.ready", "without its last byte", truncate(lengthOf(t, good+"/journal.ready") - 1)},
		{"journal.ready", "magic changed", flip(0)},
		{"journal.ready", "header changed", flip(33)},
		{"journal.ready", "its target changed", flip(64 + 9)},
		{"journal.ready", "data changed", flip(5 * mib)},
		{"journal.ready", "a table changed", flip(placeOf(t, good+"/journal.ready", "TMTABLE\n") + 40)},
		{"journal.ready", "its state changed", flip(placeOf(t, good+"/journal.ready", `{"version"`) + 20)},
	} {
		t.Run(tt.file+" "+tt.how, func(t *testing.T) {
			must(t, "rm", "-r", m.image+".tidemark")
			must(t, "cp", "-a", good, m.image+".tidemark")
			tt.harm(t, m.image+".tidemark/"+tt.file)
			was := look(t, m.beside()...)
			m.exits(t, exitDamaged, []string{"hint: "}, "mirror", m.dev, m.image)
			m.exits(t, exitDamaged, nil, "mirror", "--tracker", "scan", m.dev, m.image)
			if tt.file == "state" && tt.how != "lost" { // of the rest, verify sees no mirror, or one to be finished
				m.exits(t, exitDamaged, nil, "verify", m.image)
			}
			untouched(t, was, m.beside()...)
		})
	}
	must(t, "rm", "-r", m.image+".tidemark")
	must(t, "cp", "-a", good, m.image+".tidemark")
	m.exits(t, exitOK, []string{"finished a change"}, "mirror", m.dev, m.image)
	m.recovers(t, "incremental")
}

func placeOf(t testing.TB, path, text string) int64 {
	t.Helper()
	content, err := os.ReadFile(path)
	at := bytes.LastIndex(content, []byte(text))
	if err != nil || at < 0 {
		t.Fatalf("%q in %s: %v", text, path, err)
	}
	return int64(at)
}

func lengthOf(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// What was never committed is of no account, whatever it holds.
func TestGarbageForAJournalIsDiscarded(t *testing.T) {
	dir := scratch(t)
	m := mirrored{newProgram(t, dir), dir, loop(t, dir, diskSize), filepath.Join(dir, "mirror.img")}
	fill(t, m.dev, 0, 16*mib)
	m.mirror(t, m.dev, m.image)
	fill(t, m.dev, mib, 4*mib)
	fill(t, m.image+".tidemark/journal", 0, 3*mib)
	m.exits(t, exitOK, []string{"discarded a change"}, "mirror", m.dev, m.image)
	m.recovers(t, "incremental")
}

func TestDamagedChecksumsAreFoundByVerify(t *testing.T) {
	dir := scratch(t)
	m := mirrored{newProgram(t, dir), dir, loop(t, dir, diskSize), filepath.Join(dir, "mirror.img")}
	fill(t, m.dev, 0, 16*mib)
	m.mirror(t, m.dev, m.image)
	was := look(t, m.image)
	damage(t, m.image+".tidemark/sums", 4096+100*16)
	m.exits(t, exitDifferent, []string{"differ"}, "verify", m.image)
	untouched(t, was, m.image)
	m.exits(t, exitOK, nil, "mirror", "--tracker", "scan", m.dev, m.image)
	m.exits(t, exitOK, nil, "verify", m.image)
	sameContent(t, m.dev, m.image)
}

// On a filesystem with times in whole seconds a write in the second in which the run ended
// must not look like ours.
func TestTargetThatSomeoneElseChangedInTheSameSecondIsRepaired(t *testing.T) {
	dir := scratch(t)
	disk := loop(t, folder(t, dir, "target"), 256*mib)
	must(t, "mkfs.ext4", "-q", "-I", "128", disk)
	at := folder(t, dir, "mnt")
	must(t, "mount", disk, at)
	t.Cleanup(func() { must(t, "umount", at) })
	m := mirrored{newProgram(t, dir), dir, loop(t, dir, diskSize), filepath.Join(at, "mirror.img")}
	for range 4 { // a first copy, and updates
		fill(t, m.dev, 9*mib, mib)
		m.mirror(t, m.dev, m.image)
		damage(t, m.image, 5*mib+7)
		m.exits(t, exitOK, []string{"it was modified since the last run", "changed by someone else"}, "mirror", m.dev, m.image)
		sameContent(t, m.dev, m.image)
	}
}

func TestTargetThatSomeoneElseChangedIsRepaired(t *testing.T) {
	dir := scratch(t)
	m := mirrored{newProgram(t, dir), dir, loop(t, dir, diskSize), filepath.Join(dir, "mirror.img")}
	fill(t, m.dev, 0, 16*mib)
	m.mirror(t, m.dev, m.image)
	for name, change := range map[string]func(){
		"bytes changed": func() { damage(t, m.image, 5*mib+7) },
		"cut short":     func() { must(t, "truncate", "--size", "7M", m.image) },
		"made longer":   func() { must(t, "truncate", "--size", "+3M", m.image) },
		"replaced":      func() { must(t, "sh", "-c", "cp "+m.image+" x && mv x "+m.image) },
		"touched":       func() { must(t, "touch", m.image) },
		"bytes changed and the time set back": func() {
			must(t, "touch", "--reference", m.image, dir+"/time")
			damage(t, m.image, 5*mib+7)
			must(t, "touch", "--reference", dir+"/time", m.image)
		},
	} {
		t.Run(name, func(t *testing.T) {
			fill(t, m.dev, 9*mib, mib)
			change()
			f := m.exits(t, exitOK, []string{"checking it against its checksums"}, "mirror", m.dev, m.image)
			if told := strings.Contains(f.err, "changed by someone else"); told != (strings.HasPrefix(name, "bytes changed") || name == "cut short") {
				t.Errorf("it said %s", f.err)
			}
			sameContent(t, m.dev, m.image)
			m.recovers(t, "incremental")
		})
	}
	for _, to := range []string{"-1M", "+3M", "7M", "0"} {
		t.Run("resized to "+to+" while the source is quiet", func(t *testing.T) {
			must(t, "truncate", "--size", to, m.image)
			if to != "0" { // which is taken for an image that is gone
				m.exits(t, exitDifferent, []string{"differ"}, "verify", m.image)
			}
			m.exits(t, exitOK, nil, "mirror", m.dev, m.image)
			sameContent(t, m.dev, m.image)
			if rep := m.recovers(t, "incremental"); rep.Written != 0 {
				t.Errorf("%d bytes were written again", rep.Written)
			}
		})
	}
	t.Run("deleted", func(t *testing.T) {
		if err := os.Remove(m.image); err != nil {
			t.Fatal(err)
		}
		m.exits(t, exitOK, []string{"the image is gone"}, "mirror", m.dev, m.image)
		m.recovers(t, "incremental")
	})
}

func TestTargetDeviceThatSomeoneElseWroteToIsRepaired(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	src, dst := loop(t, folder(t, dir, "source"), 64*mib), loop(t, folder(t, dir, "target"), 80*mib)
	m := mirrored{p, dir, src, dst}
	fill(t, src, 0, 64*mib)
	p.mirror(t, src, dst)
	fill(t, dst, 10*mib, 4096)
	fill(t, src, 2*mib, mib)
	p.exits(t, exitOK, []string{"sectors were written", "4096 bytes were changed by someone else"}, "mirror", src, dst)
	fill(t, dst, 20*mib, 4096)
	p.exits(t, exitDifferent, nil, "verify", dst)
	p.exits(t, exitOK, []string{"found to be damaged", "4096 bytes were changed by someone else"}, "mirror", src, dst)
	p.exits(t, exitOK, nil, "verify", dst, "--against", src)
	if rep := p.mirror(t, m.dev, m.image); rep.Mode != "incremental" || rep.Written != 0 {
		t.Errorf("%+v", rep)
	}
}

// Where nobody counts writes, every run has to look for those of others.
func TestTargetDeviceWhoseWritesAreNotCountedIsChecked(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	src, dst := loop(t, folder(t, dir, "source"), 64*mib), loop(t, folder(t, dir, "target"), 64*mib)
	fill(t, src, 0, 64*mib)
	count := func(yes string) {
		if err := os.WriteFile("/sys/block/"+filepath.Base(dst)+"/queue/iostats", []byte(yes), 0o200); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { count("1") }) // the device keeps it when it is detached
	for _, counting := range []string{"0", "1", "0"} {
		count(counting)
		p.mirror(t, src, dst)
		fill(t, dst, 10*mib, 4096)
		f := p.exits(t, exitOK, []string{"4096 bytes were changed by someone else"}, "mirror", src, dst)
		if told := strings.Contains(f.err, "the kernel does not count"); told != (counting == "0") {
			t.Errorf("it said %s", f.err)
		}
		p.exits(t, exitOK, nil, "verify", dst, "--against", src)
	}
}
