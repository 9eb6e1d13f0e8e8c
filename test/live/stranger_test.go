package live_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/format/state"
	"tidemark/transfer/target"
)

// Partitions of one disk share its tracking, so that a mark of one can be vouched
// for when it is asked about the other.
func TestForceOntoTheMirrorOfAnotherPartitionCopiesAllThatDiffers(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	disk := loop(t, dir, 64*mib)
	cmd := exec.Command("sfdisk", "--quiet", disk)
	cmd.Stdin = strings.NewReader("label: gpt\nsize=16MiB\nsize=16MiB\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v: %s", err, out)
	}
	must(t, "partx", "--update", disk)
	t.Cleanup(func() { must(t, "partx", "--delete", disk) })
	one, two := disk+"p1", disk+"p2"
	fill(t, one, 0, 4*mib)
	fill(t, two, 8*mib, 4*mib)
	image := filepath.Join(dir, "mirror.img")

	p.mirror(t, one, image)
	p.exits(t, exitRefused, []string{"it is a mirror of", "--force"}, "mirror", two, image)
	p.exits(t, exitOK, []string{"scan"}, "mirror", "--dry-run", "--force", two, image)
	if rep := p.mirror(t, "--force", two, image); rep.Mode != "scan" {
		t.Errorf("mode %s", rep.Mode)
	}
	sameContent(t, two, image)
	p.exits(t, exitOK, nil, "verify", image)
	if rep := p.mirror(t, two, image); rep.Mode != "incremental" {
		t.Errorf("mode %s: %s", rep.Mode, rep.MarkLost)
	}

	// A first copy that was not finished is no start for that of another source.
	half := filepath.Join(dir, "half.img")
	r := p.start(t, "mirror", "--bwlimit", "1MB", "--post-hook", "true", one, half)
	until(t, "it is copying", func() bool { return allocated(half) > 0 })
	r.kill(t, 15).want(t, exitByTERM)
	p.mirror(t, "--force", two, half)
	sameContent(t, two, half)
	p.exits(t, exitOK, nil, "verify", half)
}

// An update that makes a target the mirror of another source, committed and then cut
// off, is finished by the next run, and what it says is what the target is.
func TestCommittedUpdateFromAnotherSourceIsFinishedFirst(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	one, two := loop(t, folder(t, dir, "one"), diskSize), loop(t, folder(t, dir, "two"), diskSize)
	fill(t, one, 0, 8*mib)
	fill(t, two, 0, 12*mib)
	image, other := filepath.Join(dir, "mirror.img"), filepath.Join(dir, "other.img")
	p.mirror(t, two, other)
	known, err := target.Status(other, p.stateDir)
	if err != nil {
		t.Fatal(err)
	}
	becomeTwo := func(state.Source) state.Source { return known.Source }

	p.mirror(t, one, image)
	commitOnly(t, mirrored{p, dir, two, image}, 12*mib, becomeTwo)
	p.exits(t, exitOK, []string{"finished a change"}, "mirror", two, image)
	sameContent(t, two, image)
	p.exits(t, exitOK, nil, "verify", image)

	p.mirror(t, "--force", one, image)
	commitOnly(t, mirrored{p, dir, two, image}, 12*mib, becomeTwo)
	p.exits(t, exitRefused, []string{"it is a mirror of " + two}, "mirror", one, image)
	p.exits(t, exitOK, nil, "verify", image)
	if rep := p.mirror(t, "--force", one, image); rep.Mode != "scan" {
		t.Errorf("mode %s", rep.Mode)
	}
	sameContent(t, one, image)
}
