package live_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The disk is dead, and the power went while its copy was brought up to date.
func TestWhatWaitsIsFinishedWithoutTheSource(t *testing.T) {
	m := halfApplied(t)
	want := filepath.Join(m.dir, "want")
	must(t, "dd", "if="+m.dev, "of="+want, "bs=1M", "status=none")
	fill(t, m.dev, 0, mib) // the source is gone, or another: it is not asked
	m.exits(t, exitOK, []string{"finished a change", "it is the copy of"}, "recover", m.image)
	sameContent(t, want, m.image)
	m.exits(t, exitOK, nil, "verify", m.image)
	was := look(t, m.beside()...)
	m.exits(t, exitOK, []string{"nothing waits"}, "recover", m.image)
	m.exits(t, exitOK, []string{"nothing waits"}, "recover", "--discard", m.image)
	untouched(t, was, m.beside()...)
	m.recovers(t, "incremental")
	m.exits(t, exitError, []string{"no mirror"}, "recover", m.dev)
	m.exits(t, exitError, []string{"no mirror"}, "recover", filepath.Join(m.dir, "none.img"))
}

func TestWhatIsDiscardedIsNoSourceUntilTheNextRun(t *testing.T) {
	m := halfApplied(t)
	damage(t, m.image, 9*mib) // somebody else wrote to it as well
	damage(t, m.image+".tidemark/journal.ready", 5*mib)
	m.exits(t, exitDamaged, []string{"hint: ", "recover --discard"}, "recover", m.image)
	was := look(t, m.image)
	m.exits(t, exitOK, []string{"discarded a change"}, "recover", "--discard", m.image)
	untouched(t, was, m.image)
	m.exits(t, exitRefused, []string{"its first copy has not ended", "hint: "}, "mirror", m.image, filepath.Join(m.dir, "other.img"))
	m.exits(t, exitOK, nil, "mirror", m.dev, m.image)
	sameContent(t, m.dev, m.image)
	m.recovers(t, "incremental")
}

// What is between two copies, or the beginning of one, is copied nowhere.
func TestAMirrorThatIsNoCopyIsNoSource(t *testing.T) {
	m := halfApplied(t)
	second := filepath.Join(m.dir, "second.img")
	was := look(t, m.beside()...)
	over := must(t, "losetup", "--find", "--show", m.image)
	m.exits(t, exitError, []string{"waits to be finished"}, "mirror", over, second)
	must(t, "losetup", "--detach", over)
	m.exits(t, exitError, []string{"waits to be finished"}, "verify", m.image, "--against", m.dev)
	m.exits(t, exitError, []string{"waits to be finished", "recover"}, "mirror", "--dry-run", m.image, second)
	// A target that is refused leaves the source as it is, too.
	letter := filepath.Join(m.dir, "letter")
	if err := os.WriteFile(letter, []byte("a letter"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.exits(t, exitRefused, nil, "mirror", m.image, letter)
	untouched(t, was, m.beside()...)
	m.exits(t, exitOK, []string{"finished a change"}, "mirror", m.image, second)
	sameContent(t, m.dev, second)

	half := filepath.Join(m.dir, "half.img")
	r := m.start(t, "mirror", "--bwlimit", "1MB", m.dev, half)
	until(t, "it is copying", func() bool { return allocated(half) > 0 })
	r.kill(t, 15).want(t, exitByTERM)
	for _, args := range [][]string{
		{"mirror", half, second},
		{"mirror", "--force", half, second},
		{"mirror", "--dry-run", half, second},
		{"verify", m.image, "--against", half},
	} {
		m.exits(t, exitRefused, []string{"its first copy has not ended"}, args...)
	}
	if f := m.exits(t, exitOK, nil, "recover", half); !strings.Contains(f.out, "goes on with the next run") {
		t.Errorf("it said %s", f.out)
	}
	m.exits(t, exitOK, []string{"is no mirror any more"}, "recover", "--discard", half)
	m.exits(t, exitError, []string{"no mirror"}, "status", half)
}
