//go:build linux

package thin_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark/linux/sysfs"
	"tidemark/test/vm/guest"
	"tidemark/test/vm/guest/instant"
)

// A pool is where the volumes of a test are: LVM's or a plain one.
type pool struct {
	name   string // of its device
	volume func(t *testing.T, i int) string
	// kept returns the path of a device that shows a snapshot that tidemark keeps.
	kept func(t *testing.T, s kept) string
}

// kept is what a record of tidemark's says of a snapshot.
type kept struct {
	Generation string `json:"generation"`
	LV         string `json:"lv"`
	ID         uint32 `json:"id"`
	Made       bool   `json:"made"`
}

// mirrorBlocks is the size of a volume of these tests.
const mirrorBlocks = 512

const snapshots = "/var/lib/tidemark/thin/snapshots"

// records returns what tidemark keeps.
func records(t *testing.T) (list []kept) {
	t.Helper()
	files, err := filepath.Glob(snapshots + "/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		var k kept
		content, err := os.ReadFile(f)
		if err == nil {
			err = json.Unmarshal(content, &k)
		}
		if err != nil {
			t.Fatal(f, err)
		}
		list = append(list, k)
	}
	return list
}

// clean forgets all that tidemark keeps, at the beginning of a test.
func clean(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"/var/lib/tidemark", "/run/tidemark"} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

func plainPool(t *testing.T) pool {
	clean(t)
	meta, data := guest.Disk(t, "meta"), guest.Disk(t, "data")
	guest.Run(t, "dd", "if=/dev/zero", "of="+meta, "bs=4096", "count=1", "conv=fsync", "status=none")
	guest.Mapper(t, "pool", fmt.Sprintf("0 %s thin-pool %s %s %d 0 1 skip_block_zeroing", guest.Sectors(t, data), meta, data, blockSectors))
	return pool{
		name: "pool",
		volume: func(t *testing.T, i int) string {
			message(t, "create_thin %d", i)
			return guest.Mapper(t, fmt.Sprintf("vol%d", i), fmt.Sprintf("0 %d thin /dev/mapper/pool %d", mirrorBlocks*blockSectors, i))
		},
		kept: func(t *testing.T, s kept) string {
			return guest.Mapper(t, "kept", fmt.Sprintf("0 %d thin /dev/mapper/pool %d", mirrorBlocks*blockSectors, s.ID))
		},
	}
}

func lvmPool(t *testing.T) pool {
	clean(t)
	guest.Run(t, "dd", "if=/dev/zero", "of="+guest.Disk(t, "data"), "bs=1M", "count=4", "conv=fsync", "status=none")
	guest.Run(t, "vgcreate", "--quiet", "vg", guest.Disk(t, "data"))
	t.Cleanup(func() { guest.Run(t, "vgremove", "--quiet", "--force", "--force", "--yes", "vg") })
	guest.Run(t, "lvcreate", "--quiet", "--type", "thin-pool", "--size", "200M", "--poolmetadatasize", "8M", "--chunksize", "64k", "--name", "tp", "vg")
	return pool{
		name: "vg-tp-tpool",
		volume: func(t *testing.T, i int) string {
			guest.Run(t, "lvcreate", "--quiet", "--thin", "--virtualsize", fmt.Sprintf("%db", mirrorBlocks*blockBytes), "--name", fmt.Sprintf("v%d", i), "vg/tp")
			return fmt.Sprintf("/dev/vg/v%d", i)
		},
		kept: func(t *testing.T, s kept) string {
			guest.Run(t, "lvchange", "--quiet", "--activate", "y", "--ignoreactivationskip", s.LV)
			t.Cleanup(func() { _ = exec.Command("lvchange", "--activate", "n", s.LV).Run() })
			return "/dev/" + s.LV
		},
	}
}

// each runs a test with either pool.
func each(t *testing.T, test func(*testing.T, pool)) {
	t.Run("plain", func(t *testing.T) { test(t, plainPool(t)) })
	t.Run("LVM", func(t *testing.T) { test(t, lvmPool(t)) })
}

// report is what "tidemark mirror --json" says of one pair.
type report struct {
	Tracker  string `json:"tracker"`
	View     string `json:"view"`
	Mode     string `json:"mode"`
	MarkLost string `json:"mark_lost"`
	Read     int64  `json:"bytes_read"`
	Written  int64  `json:"bytes_written"`
	Outcome  string `json:"outcome"`
}

// mirror runs "tidemark mirror", and wants a mode.
func mirror(t *testing.T, mode string, args ...string) report {
	t.Helper()
	out := guest.Run(t, "tidemark", append([]string{"mirror", "--json"}, args...)...)
	var last report
	for line := range strings.Lines(out) {
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if last.Tracker != "thin" || last.View != "thin" || last.Mode != mode || last.Outcome != "ok" {
		t.Fatalf("%+v, want mode %s:\n%s", last, mode, out)
	}
	return last
}

// settled checks that nothing of a run is left but n snapshots: none suspended, no device of ours,
// and as many devices in the pool as there should be.
func settled(t *testing.T, p pool, volumes, n int) []kept {
	t.Helper()
	list := records(t)
	if len(list) != n {
		t.Fatalf("%d snapshots are kept, want %d: %+v", len(list), n, list)
	}
	if info := guest.Run(t, "dmsetup", "info", "-c", "--noheadings", "-o", "name,suspended"); strings.Contains(info, "Suspended") || strings.Contains(info, "tidemark") {
		t.Errorf("left behind:\n%s", info)
	}
	if devices := guest.Run(t, "tidemark", "thin", "ls", "--no-headers", "-o", "DEV", "/dev/mapper/"+p.name); len(strings.Fields(devices)) != volumes+n {
		t.Errorf("devices %q in the pool, want %d", devices, volumes+n)
	}
	return list
}

// same compares a mirror with the snapshot that is kept for it.
func same(t *testing.T, p pool, image string, s kept) {
	t.Helper()
	t.Run("the copy is the snapshot", func(t *testing.T) {
		path := p.kept(t, s)
		instant.Compare(t, instant.MustRead(t, path), instant.MustRead(t, image))
	})
}

// Each mirror of a busy volume is a snapshot of it, of which one is kept; later ones read what has
// changed, discards included.
func TestMirrorsOfABusyThinVolume(t *testing.T) {
	each(t, func(t *testing.T, p pool) {
		vol, image, at := p.volume(t, 0), filepath.Join(t.TempDir(), "image"), t.TempDir()
		guest.Run(t, "mkfs.ext4", "-q", vol)
		guest.Run(t, "mount", vol, at)
		stop := instant.Load(t, at)
		for _, mode := range []string{"full", "incremental", "incremental"} {
			mirror(t, mode, vol, image)
			same(t, p, image, settled(t, p, 1, 1)[0])
			guest.Run(t, "e2fsck", "-fn", image)
		}
		stop()
		mirror(t, "incremental", vol, image)
		if err := os.Remove(filepath.Join(at, "load.0.0")); err != nil {
			t.Fatal(err)
		}
		guest.Run(t, "fstrim", at)
		guest.WriteFile(t, filepath.Join(at, "small"), "text")
		guest.Run(t, "umount", at)
		guest.Run(t, "tidemark", "mirror", "--dry-run", vol, image)
		settled(t, p, 1, 1)
		if r := mirror(t, "incremental", vol, image); r.Read > 6<<20 || r.Read == 0 {
			t.Errorf("%d bytes were read", r.Read)
		}
		instant.Compare(t, instant.MustRead(t, vol), instant.MustRead(t, image))
		if r := mirror(t, "incremental", vol, image); r.Read != 0 {
			t.Errorf("%d bytes were read although nothing has changed", r.Read)
		}
		if out := guest.Run(t, "tidemark", "status", "--json"); !strings.Contains(out, `"next":"incremental"`) {
			t.Errorf("status: %s", out)
		}
		guest.Run(t, "tidemark", "track", "stop", vol)
		settled(t, p, 1, 0)
	})
}

// counted is the number in the filesystem of an image.
func counted(t *testing.T, image string) (n int) {
	t.Helper()
	t.Run(filepath.Base(image), func(t *testing.T) {
		at := t.TempDir()
		guest.Run(t, "mount", "-o", "ro,noload", guest.Loop(t, image, "--read-only"), at)
		content, err := os.ReadFile(filepath.Join(at, "count"))
		guest.Run(t, "umount", at)
		if err == nil {
			_, err = fmt.Sscanf(string(content), "%d", &n)
		}
		if err != nil {
			t.Error(err)
		}
	})
	return n
}

// Several volumes are copied at one instant: what is written to one after the other has not
// overtaken it.
func TestThinVolumesAreOfOneInstant(t *testing.T) {
	each(t, func(t *testing.T, p pool) {
		dir := t.TempDir()
		args, folders := []string{"--max-freeze", "60s"}, []string(nil)
		for i, name := range []string{"a", "b"} {
			vol, at := p.volume(t, i), t.TempDir()
			guest.Run(t, "mkfs.ext4", "-q", vol)
			guest.Run(t, "mount", vol, at)
			t.Cleanup(func() { guest.Run(t, "umount", at) })
			args, folders = append(args, "--pair", vol+"="+filepath.Join(dir, name)), append(folders, at)
		}
		stop := instant.Count(t, folders...)
		defer stop()
		if old, err := sysfs.KernelBefore(6, 8); err != nil || old && p.name != "pool" {
			out, err := exec.Command("tidemark", append([]string{"mirror", "--view", "thin"}, args...)...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "Linux before 6.8") {
				t.Errorf("%v: %s", err, out)
			}
			settled(t, p, 2, 0)
			return
		}
		for _, mode := range []string{"full", "incremental", "incremental"} {
			mirror(t, mode, args...)
			if a, b := counted(t, filepath.Join(dir, "a")), counted(t, filepath.Join(dir, "b")); a != b && a != b+1 || a == 0 {
				t.Errorf("counters %d and %d", a, b)
			}
			settled(t, p, 2, 2)
		}
	})
}

// A run that is killed leaves nothing that the next one does not remove; its copy is right.
func TestThinRunsThatAreKilled(t *testing.T) {
	each(t, func(t *testing.T, p pool) {
		vol, image := p.volume(t, 0), filepath.Join(t.TempDir(), "image")
		rng := rand.New(rand.NewPCG(3, 3))
		write(t, rng, vol, 20)
		mirror(t, "full", vol, image)
		began := time.Now()
		mirror(t, "incremental", vol, image)
		took := time.Since(began)
		for i := range 8 {
			write(t, rng, vol, 5)
			ctx, cancel := context.WithTimeout(t.Context(), took/5+took*time.Duration(i)/8*4/5)
			cmd := exec.CommandContext(ctx, "tidemark", "mirror", vol, image)
			_ = cmd.Run() // killed, or not
			cancel()
		}
		mirror(t, "incremental", vol, image)
		same(t, p, image, settled(t, p, 1, 1)[0])
		instant.Compare(t, instant.MustRead(t, vol), instant.MustRead(t, image))
	})
}

// A snapshot that is gone, was made anew, or was changed, is no mark: all is compared. One that
// was away, as over a reboot, is.
func TestThinMarksThatAreLost(t *testing.T) {
	p := plainPool(t)
	vol, image := p.volume(t, 0), filepath.Join(t.TempDir(), "image")
	write(t, rand.New(rand.NewPCG(4, 4)), vol, 20)
	mirror(t, "full", vol, image)
	change := func(t *testing.T, do func(path string)) {
		d := records(t)[0]
		name := "changed"
		guest.Run(t, "dmsetup", "create", name, "--table", fmt.Sprintf("0 %d thin /dev/mapper/pool %d", mirrorBlocks*blockSectors, d.ID))
		do("/dev/mapper/" + name)
		guest.Run(t, "dmsetup", "remove", "--retry", name)
	}
	kept := []string{"0"} // devices in the pool that are not ours
	for _, c := range []struct {
		name, reason string
		do           func(t *testing.T)
	}{
		{"gone", "is gone", func(t *testing.T) { message(t, "delete %d", records(t)[0].ID) }},
		{"made anew", "is another one", func(t *testing.T) {
			id := records(t)[0].ID
			message(t, "delete %d", id)
			message(t, "create_snap %d 0", id)
		}},
		{"written to", "was written to", func(t *testing.T) {
			change(t, func(path string) {
				guest.Run(t, "dd", "if=/dev/urandom", "of="+path, "bs=64k", "count=1", "oflag=direct", "conv=notrunc", "seek="+written(t))
			})
		}},
		{"discarded", "was changed", func(t *testing.T) {
			change(t, func(path string) { guest.Run(t, "blkdiscard", path) })
		}},
		{"became the volume", "has become the volume", func(t *testing.T) {
			guest.Run(t, "dmsetup", "load", "vol0", "--table", fmt.Sprintf("0 %d thin /dev/mapper/pool %d", mirrorBlocks*blockSectors, records(t)[0].ID))
			guest.Run(t, "dmsetup", "resume", "vol0")
			write(t, rand.New(rand.NewPCG(5, 5)), vol, 20)
		}},
		{"became the volume's origin", "a snapshot was made of its snapshot", func(t *testing.T) {
			id := records(t)[0].ID
			change(t, func(path string) { write(t, rand.New(rand.NewPCG(6, 6)), path, 20) })
			message(t, "create_snap 77 %d", id)
			guest.Run(t, "dmsetup", "load", "vol0", "--table", fmt.Sprintf("0 %d thin /dev/mapper/pool 77", mirrorBlocks*blockSectors))
			guest.Run(t, "dmsetup", "resume", "vol0")
			kept = append(kept, fmt.Sprint(id), "77")
		}},
		{"no record", "nothing is known", func(t *testing.T) {
			message(t, "delete %d", records(t)[0].ID)
			if err := os.RemoveAll(snapshots); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.do(t)
			if r := mirror(t, "scan", vol, image); !strings.Contains(r.MarkLost, c.reason) {
				t.Errorf("lost: %q, want %q", r.MarkLost, c.reason)
			}
			instant.Compare(t, instant.MustRead(t, vol), instant.MustRead(t, image))
			// What somebody has made of ours is not removed; what was made anew is.
			for id := range strings.FieldsSeq(guest.Run(t, "tidemark", "thin", "ls", "--no-headers", "-o", "DEV", "/dev/mapper/pool")) {
				if !slices.Contains(kept, id) && id != fmt.Sprint(records(t)[0].ID) {
					if c.name != "made anew" && c.name != "written to" && c.name != "discarded" && c.name != "became the volume" {
						t.Errorf("the device %s is left in the pool", id)
					}
					kept = append(kept, id)
				}
			}
			for _, id := range kept {
				if _, err := exec.Command("dmsetup", "message", "pool", "0", "create_thin "+id).CombinedOutput(); err == nil {
					t.Errorf("the device %s, which is not ours, was removed", id)
				}
			}
		})
	}
	t.Run("reboot", func(t *testing.T) {
		table, volume := guest.Run(t, "dmsetup", "table", "pool"), guest.Run(t, "dmsetup", "table", "vol0")
		guest.Run(t, "dmsetup", "remove", "--retry", "vol0")
		guest.Run(t, "dmsetup", "remove", "--retry", "pool")
		if err := os.RemoveAll("/run/tidemark"); err != nil {
			t.Fatal(err)
		}
		guest.Run(t, "dmsetup", "create", "pool", "--table", table)
		words := strings.Fields(volume)
		guest.Run(t, "dmsetup", "create", "vol0", "--table", fmt.Sprintf("0 %d thin /dev/mapper/pool %s", mirrorBlocks*blockSectors, words[4]))
		mirror(t, "incremental", vol, image)
	})
	t.Run("full", func(t *testing.T) {
		for i, used, total := 1, 0, 1; used*100 < total*95; i++ {
			guest.Run(t, "dd", "if=/dev/zero", "of="+p.volume(t, i), "bs=1M", "count=8", "oflag=direct")
			if _, err := fmt.Sscanf(strings.Fields(guest.Run(t, "dmsetup", "status", "pool"))[5], "%d/%d", &used, &total); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.Command("tidemark", "mirror", "--view", "thin", vol, image).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "data blocks in use") {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// written is the number of a block that the volume has, and so has its snapshot.
func written(t *testing.T) string {
	t.Helper()
	out := guest.Run(t, "sh", "-c", "tidemark thin dump --dev-id 0 /dev/mapper/pool | grep -m1 origin_")
	var n int
	for word := range strings.FieldsSeq(out) {
		for _, key := range []string{`origin_block="`, `origin_begin="`} {
			if rest, ok := strings.CutPrefix(word, key); ok {
				fmt.Sscanf(rest, "%d", &n)
			}
		}
	}
	return fmt.Sprint(n)
}
