//go:build linux

package snapstore_test

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"tidemark/test/vm/guest"
)

// apply is the command that applies vg/snap to vg/lv.
func apply(more ...string) *exec.Cmd {
	return exec.Command("tidemark", append([]string{"snapstore", "apply", "--lv", "vg/lv", "--snapshot", "vg/snap"}, more...)...)
}

func applied(t *testing.T, more ...string) string {
	t.Helper()
	out, err := apply(more...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// tables are the devices that there are, with what they map to.
func tables(t *testing.T) string {
	t.Helper()
	return guest.Run(t, "sh", "-c", "dmsetup ls | cut -f1 | sort; lvs --noheadings -o lv_name,lv_attr,lv_tags vg")
}

// One command does what lvconvert --merge does, and LVM's snapshot stays as it was.
func TestAVolumeIsRolledBackInOneCommand(t *testing.T) {
	group(t)
	lv := volume(t, "lv")
	guest.Run(t, "lvcreate", "--quiet", "--zero", "n", "--wipesignatures", "n", "--size", "16M", "--name", "twin", "vg")
	guest.Run(t, "dd", "if="+lv, "of=/dev/vg/twin", "bs=1M", "iflag=direct", "oflag=direct")
	want := guest.Sum(t, lv)
	snapped(t, "12M")
	guest.Run(t, "lvcreate", "--quiet", "--snapshot", "--size", "12M", "--chunksize", "64k", "--name", "twinsnap", "vg/twin")
	load(t, 20, lv, "/dev/vg/twin")
	if guest.Sum(t, lv) == want || guest.Sum(t, "/dev/vg/snap") != want {
		t.Fatal("the snapshot is no snapshot")
	}
	before := tables(t)
	t.Log(applied(t, "--dry-run"))
	if after := tables(t); after != before || guest.Sum(t, lv) == want {
		t.Errorf("a dry run has changed\n%s\nto\n%s", before, after)
	}
	t.Log(applied(t))
	guest.Run(t, "lvconvert", "--interval", "1", "--merge", "vg/twinsnap")
	if ours, theirs := guest.Sum(t, lv), guest.Sum(t, "/dev/vg/twin"); ours != want || theirs != want {
		t.Errorf("at the snapshot it was %s, we made %s, LVM %s", want, ours, theirs)
	}
	if guest.Sum(t, "/dev/vg/snap") != want {
		t.Error("the snapshot is another")
	}
	guest.Run(t, "lvremove", "--quiet", "--yes", "vg/twin")
	if after := tables(t); strings.Contains(after, "tidemark") || !strings.Contains(after, "vg-snap-cow") {
		t.Errorf("left behind:\n%s", after)
	}
	// The snapshot still rolls back, and what is written to it is committed.
	load(t, 10, lv, "/dev/vg/snap")
	want = guest.Sum(t, "/dev/vg/snap")
	applied(t)
	if guest.Sum(t, lv) != want {
		t.Error("a snapshot that was written to was not committed")
	}
}

// What would do harm is refused, and nothing has changed then.
func TestVolumesInUseAreRefused(t *testing.T) {
	group(t)
	lv := volume(t, "lv")
	guest.Run(t, "mkfs.ext4", "-q", lv)
	snapped(t, "8M")
	at := t.TempDir()
	refuse := func(words string) {
		t.Helper()
		before, sum := tables(t), guest.Sum(t, lv)
		fails(t, words, apply().Args...)
		if after := tables(t); after != before || guest.Sum(t, lv) != sum {
			t.Errorf("%s: refused, but\n%s\nbecame\n%s", words, before, after)
		}
	}
	guest.Run(t, "mount", "-o", "ro", lv, at)
	refuse("mounted")
	guest.Run(t, "umount", at)
	guest.Run(t, "mount", "-o", "ro", "/dev/vg/snap", at)
	refuse("mounted")
	guest.Run(t, "umount", at)
	guest.Run(t, "lvchange", "--permission", "r", "vg/lv")
	refuse("read-only")
	guest.Run(t, "lvchange", "--permission", "rw", "vg/lv")
	f, err := os.Open(lv)
	if err != nil {
		t.Fatal(err)
	}
	refuse("open")
	f.Close()
	guest.Run(t, "lvcreate", "--quiet", "--snapshot", "--size", "4M", "--name", "second", "vg/lv")
	refuse("vg/second is a snapshot of it too")
	guest.Run(t, "lvremove", "--quiet", "--yes", "vg/second")
	f, err = os.Open(lv)
	if err != nil {
		t.Fatal(err)
	}
	guest.Run(t, "lvconvert", "--merge", "vg/snap") // when it is next activated
	refuse("LVM itself merges")
	f.Close()
}

// A run that is killed at whatever moment leaves a volume that is whole, or one that is down and
// says why; and the next run ends it.
func TestAKilledRunIsEndedByTheNext(t *testing.T) {
	group(t)
	lv := volume(t, "lv")
	want := guest.Sum(t, lv)
	snapped(t, "14M")
	began := time.Now()
	load(t, 30, lv)
	applied(t)
	whole := time.Since(began)
	states := map[string]int{}
	for range rounds(t, 4) {
		load(t, 10, lv)
		old := guest.Sum(t, lv)
		cmd := apply()
		var told strings.Builder
		cmd.Stdout, cmd.Stderr = &told, &told
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.Int64N(int64(whole))))
		how := [...]os.Signal{os.Kill, os.Interrupt}[rand.IntN(2)]
		if err := cmd.Process.Signal(how); err != nil {
			t.Log(err)
		}
		_ = cmd.Wait() // killed, or done
		if left := guest.Run(t, "dmsetup", "ls"); how == os.Interrupt && strings.Contains(left, "tidemark") {
			t.Fatalf("a run that was interrupted leaves behind:\n%s", left)
		}
		attr := guest.Run(t, "lvs", "--noheadings", "-o", "lv_active,lv_tags", "vg/lv")
		states[strings.Join(strings.Fields(attr), " ")]++
		if half := strings.Contains(attr, "tidemark_half_applied"); half {
			guest.Run(t, "vgchange", "--activate", "y", "vg") // as when the machine boots
			if _, err := os.Stat(lv); err == nil {
				t.Fatal("a volume that is neither old nor new was activated")
			}
		} else if _, err := os.Stat(lv); err == nil {
			if sum := guest.Sum(t, lv); sum != old && sum != want {
				t.Fatalf("%v: the volume is up, and neither old nor new", how)
			}
		}
		here := tables(t)
		said := applied(t)
		if _, err := os.Stat(lv); err != nil {
			t.Fatalf("%v: %s\nIt was\n%s\nThen the next run said %s, and it is\n%s", how, told.String(), here, said, tables(t))
		}
		if guest.Sum(t, lv) != want || guest.Sum(t, "/dev/vg/snap") != want {
			t.Fatal("after a run that was killed the next one does not restore the volume")
		}
		if after := tables(t); strings.Contains(after, "tidemark") {
			t.Fatalf("left behind:\n%s", after)
		}
	}
	t.Log(states)
}
