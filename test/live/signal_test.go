package live_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// signals that ask to end, and the exit codes that they lead to.
var signals = []struct {
	name   string
	signal syscall.Signal
	code   int
}{
	{"SIGINT", syscall.SIGINT, exitByINT},
	{"SIGTERM", syscall.SIGTERM, exitByTERM},
	{"SIGHUP", syscall.SIGHUP, exitByHUP},
}

func TestInterruptedFirstCopyIsResumedNotRestarted(t *testing.T) {
	for _, s := range signals {
		t.Run(s.name, func(t *testing.T) {
			dir := scratch(t)
			p := newProgram(t, dir)
			dev := loop(t, dir, diskSize)
			at := mount(t, "ext4", dev, dir)
			fill(t, filepath.Join(at, "file"), 0, 90*mib)
			must(t, "sync", "--file-system", at)
			image := filepath.Join(dir, "mirror.img")

			r := p.start(t, "mirror", "--json", "--bwlimit", "60MB", dev, image)
			until(t, "half of it is copied", func() bool { return allocated(image) > 50*mib })
			r.kill(t, s.signal).want(t, s.code, "stopped by "+s.name)
			p.exits(t, exitOK, []string{"incomplete"}, "status", image)
			p.exits(t, exitRefused, []string{"its first copy has not ended"}, "verify", image)

			fill(t, filepath.Join(at, "file"), 4*mib, 4*mib) // of what was copied already
			rep := p.mirror(t, dev, image)
			if rep.Mode != "resume" || rep.Read > diskSize*3/4 {
				t.Errorf("mode %s, %d bytes read of %d", rep.Mode, rep.Read, diskSize)
			}
			p.exits(t, exitOK, nil, "verify", image)
			must(t, "umount", at)
			p.mirror(t, dev, image)
			sameContent(t, dev, image)
			must(t, "mount", dev, at)
		})
	}
}

func TestSignalledUpdateLeavesTheOldMirror(t *testing.T) {
	for _, s := range signals {
		for _, hook := range []struct{ name, flag, rest string }{
			{"before the freeze", "--pre-hook", "; exec sleep 600"}, // which nobody waits for
			{"after the thaw", "--post-hook", ""},
		} {
			t.Run(s.name+" "+hook.name, func(t *testing.T) {
				dir := scratch(t)
				p := newProgram(t, dir)
				dev := loop(t, dir, diskSize)
				at := mount(t, "ext4", dev, dir)
				image := filepath.Join(dir, "mirror.img")
				p.mirror(t, dev, image)
				was, err := lookAt(image)
				if err != nil {
					t.Fatal(err)
				}
				fill(t, filepath.Join(at, "file"), 0, 8*mib)
				f := p.run(t, "mirror", hook.flag, "kill -"+s.name[3:]+" $PPID"+hook.rest, dev, image)
				wantWritable(t, writer(t, at), thawLimit)
				if f.code != exitOK { // it came too late to stop the run
					f.want(t, s.code, "stopped by "+s.name)
					sameBytes(t, was, image)
				}
				p.exits(t, exitOK, nil, "verify", image)
				if rep := p.mirror(t, dev, image); rep.Mode != "incremental" {
					t.Errorf("mode %s: %s", rep.Mode, rep.MarkLost)
				}
				must(t, "e2fsck", "-fn", image)
			})
		}
	}
}

// A read that does not return holds up the run, and its end: only the watchdog
// can thaw then.
func TestSourceThatHangsWhileFrozenIsThawedInTime(t *testing.T) {
	for _, tt := range []struct {
		name   string
		signal syscall.Signal // 0 is none
		codes  []int
	}{
		{"not killed", 0, []int{exitOK, exitNoConverge}}, // it tries again
		{"SIGTERM", syscall.SIGTERM, []int{exitByTERM}},
		{"SIGKILL", syscall.SIGKILL, []int{exitKilled}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := scratch(t)
			p := newProgram(t, dir)
			dev, im := faulty(t, dir, 64*mib)
			at := mount(t, "ext4", dev, dir)
			image := filepath.Join(dir, "mirror.img")
			p.mirror(t, dev, image)
			was, err := lookAt(image)
			if err != nil {
				t.Fatal(err)
			}
			count := writer(t, at)
			waiting, marker := filepath.Join(dir, "waiting"), filepath.Join(dir, "goon")
			r := p.start(t, "mirror", "--max-freeze", "1s", "--pre-hook",
				fmt.Sprintf("[ -e %[2]s ] || : >%[1]s; until [ -e %[2]s ]; do sleep 0.01; done", waiting, marker), dev, image)
			until(t, "it is about to freeze", func() bool { return exists(waiting) })
			fill(t, filepath.Join(at, "file"), 0, mib) // to be read under the freeze
			release := im.hang(t)
			fill(t, marker, 0, 0)
			<-im.waited
			if tt.signal != 0 {
				if err := r.Process.Signal(tt.signal); err != nil {
					t.Fatal(err)
				}
			}
			wantWritable(t, count, thawLimit)
			release()
			f := r.end(t)
			if !slices.Contains(tt.codes, f.code) {
				t.Fatalf("exit code %d, want one of %d\n%s%s", f.code, tt.codes, f.out, f.err)
			}
			if f.code != exitOK {
				sameBytes(t, was, image)
			}
			p.exits(t, exitOK, nil, "verify", image)
			if rep := p.mirror(t, dev, image); rep.Mode != "incremental" {
				t.Errorf("mode %s: %s", rep.Mode, rep.MarkLost)
			}
			must(t, "e2fsck", "-fn", image)
		})
	}
}

// When the connection is gone, what was quiesced must go on all the same.
func TestPostHookRunsWhenTheTerminalIsGone(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	dev := loop(t, dir, 64*mib)
	mount(t, "ext4", dev, dir)
	pre, post := filepath.Join(dir, "pre"), filepath.Join(dir, "post")
	r := p.start(t, "mirror", "--pre-hook", ": >"+pre+"; exec sleep 600", "--post-hook", ": >"+post, dev, filepath.Join(dir, "mirror.img"))
	until(t, "the hook runs", func() bool { return exists(pre) })
	r.kill(t, syscall.SIGHUP).want(t, exitByHUP, "stopped by SIGHUP")
	if !exists(post) {
		t.Error("the post-hook did not run")
	}

	// Without a terminal, only the pipes break.
	image := filepath.Join(dir, "other.img")
	if err := os.Remove(post); err != nil {
		t.Fatal(err)
	}
	q := p.through("sh", "-c", `"$0" "$@" 2>&1 | true`)
	q.run(t, "mirror", "--pre-hook", "sleep 0.1", "--post-hook", ": >"+post, dev, image)
	until(t, "the post-hook ran", func() bool { return exists(post) })
	until(t, "it has ended", func() bool { return p.run(t, "verify", image).code == exitOK })
}
