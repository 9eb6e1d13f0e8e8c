//go:build linux

package snapstore_test

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark/block"
	"tidemark/linux/dm"
	"tidemark/linux/dmsnap"
	"tidemark/test/vm/guest"
)

// Sizes in sectors of the parts that the disk is cut into.
const (
	originSectors = 24 << 10
	storeSectors  = 40 << 10
)

// part makes a device of a part of the disk: the first, the second, …
func part(t *testing.T, name string, nth, sectors int) string {
	t.Helper()
	return guest.Mapper(t, name, fmt.Sprintf("0 %d linear %s %d", sectors, guest.Disk(t, "data"), nth*storeSectors))
}

// load writes to devices from several goroutines at once, at random places, and returns when
// all have ended.
func load(t *testing.T, writes int, paths ...string) {
	t.Helper()
	var all sync.WaitGroup
	for i, path := range paths {
		for range 3 {
			d := guest.OpenDirect(t, path)
			all.Go(func() {
				defer d.Close()
				buf := block.AlignedBuffer(64 << 10)
				for range writes {
					n := 512 * (1 + rand.IntN(16<<(3*rand.IntN(2))))
					guest.Scramble(buf[:n])
					buf[0] = byte(i)
					if _, err := d.WriteAt(buf[:n], rand.Int64N((d.Size()-int64(n))/512)*512); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	all.Wait()
}

// made makes a store on the two devices, and returns the checksum of what the snapshot read as in
// the end. written are the devices that are written to meanwhile: "origin", "snap".
func made(t *testing.T, origin, store string, chunk int, written ...string) string {
	t.Helper()
	zero := guest.OpenDirect(t, store)
	if _, err := zero.WriteAt(block.AlignedBuffer(1<<20), 0); err != nil {
		t.Fatal(err)
	}
	zero.Close()
	scribble(t, origin, originSectors*512)
	up := func(name, table string) string {
		guest.Run(t, "dmsetup", "create", name, "--table", table)
		return "/dev/mapper/" + name
	}
	snap := up("snap", fmt.Sprintf("0 %d snapshot %s %s P %d", originSectors, origin, store, chunk))
	up("origin", fmt.Sprintf("0 %d snapshot-origin %s", originSectors, origin))
	var paths []string
	for _, name := range written {
		paths = append(paths, "/dev/mapper/"+name)
	}
	load(t, 60, paths...)
	sum := guest.Sum(t, snap)
	guest.Run(t, "dmsetup", "remove", "--retry", "origin")
	guest.Run(t, "dmsetup", "remove", "--retry", "snap")
	return sum
}

// merged has the kernel merge a store, and waits until that has ended.
func merged(t *testing.T, origin, store string, chunk int) {
	t.Helper()
	guest.Run(t, "dmsetup", "create", "merging", "--table", fmt.Sprintf("0 %d snapshot-merge %s %s P %d", originSectors, origin, store, chunk))
	untilMerged(t)
	guest.Run(t, "dmsetup", "remove", "--retry", "merging")
}

// untilMerged waits until the kernel has merged all that the device "merging" has to.
func untilMerged(t *testing.T) {
	t.Helper()
	ctl, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer ctl.Close()
	s, err := dmsnap.Get(ctl, "merging")
	if err != nil {
		t.Fatal(err)
	}
	for {
		u, err := s.Usage(ctl)
		if err != nil || u.State != dmsnap.Valid {
			t.Fatalf("%+v, %v", u, err)
		}
		if u.Used == u.MetadataPortion {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// What we apply to one copy is what the kernel's own merge brings to another, whether the origin was
// written to (rollback), the snapshot (commit), or both.
func TestApplyIsTheKernelsMerge(t *testing.T) {
	guest.Modprobe(t, "dm-snapshot")
	origin, store := part(t, "a-origin", 0, originSectors), part(t, "a-store", 1, storeSectors)
	origin2, store2 := part(t, "b-origin", 2, originSectors), part(t, "b-store", 3, storeSectors)
	for _, c := range []struct {
		chunk   int // sectors
		written []string
	}{{8, []string{"origin"}}, {16, []string{"snap"}}, {128, []string{"origin", "snap"}}} {
		t.Run(fmt.Sprintf("%d sectors, %s", c.chunk, strings.Join(c.written, " and ")), func(t *testing.T) {
			want := made(t, origin, store, c.chunk, c.written...)
			guest.Run(t, "dd", "if="+origin, "of="+origin2, "bs=1M", "iflag=direct", "oflag=direct")
			guest.Run(t, "dd", "if="+store, "of="+store2, "bs=1M", "iflag=direct", "oflag=direct")
			before := guest.Sum(t, store)
			t.Log(guest.Run(t, "tidemark", "snapstore", "apply", store, origin))
			merged(t, origin2, store2, c.chunk)
			if ours, theirs := guest.Sum(t, origin), guest.Sum(t, origin2); ours != want || theirs != want {
				t.Errorf("the snapshot read as %s, we made %s, the kernel %s", want, ours, theirs)
			}
			if after := guest.Sum(t, store); after != before {
				t.Error("the store was changed")
			}
			guest.Run(t, "tidemark", "snapstore", "apply", store, origin)
			if guest.Sum(t, origin) != want {
				t.Error("applied twice, it is not what it was")
			}
		})
	}
}

// fails runs a command that is to fail with those words.
func fails(t *testing.T, words string, args ...string) {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), words) {
		t.Errorf("%s: %v, want %q:\n%s", strings.Join(args, " "), err, words, out)
	}
}

// A live store, and an origin of one, are refused.
func TestApplyRefusesWhatIsLive(t *testing.T) {
	group(t)
	volume(t, "lv")
	snapped(t, "8M")
	fails(t, "--lv and --snapshot", "tidemark", "snapstore", "apply", "/dev/mapper/vg-snap-cow", "/dev/mapper/vg-lv-real")
}
