package pairs_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/mounts/mountstest"
	"tidemark/transfer"
	"tidemark/transfer/copies"
	"tidemark/transfer/mirror"
	"tidemark/transfer/pairs"
	"tidemark/transfer/restore"
	"tidemark/transfer/target"
	"tidemark/transfer/transaction"
)

const mib = 1 << 20

// quiet are options of a test: no tracking, files in a folder of its own.
func quiet(stateDir string) pairs.Options {
	return pairs.Options{StateDir: stateDir, Tracker: "scan", View: "offline"}
}

// copied mirrors a source to a new image, which it returns.
func copied(t testing.TB, source string, o pairs.Options) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "copy.img")
	if _, err := pairs.Mirror(t.Context(), []pairs.Pair{{Source: source, Target: image}}, o); err != nil {
		t.Fatal(err)
	}
	return image
}

// told is what a restore tells.
type told []string

func (t *told) listen(e transfer.Event) {
	if e.Text != "" {
		*t = append(*t, e.Text)
	}
}

func (t told) has(t2 *testing.T, text string) {
	t2.Helper()
	if !strings.Contains(strings.Join(t, "\n"), text) {
		t2.Errorf("%q was not told: %q", text, t)
	}
}

// same compares size bytes of two files from off on.
func same(t testing.TB, a, b string, off, size int64) {
	t.Helper()
	var content [2][]byte
	for i, path := range []string{a, b} {
		d, err := block.Open(path, block.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		content[i] = make([]byte, size)
		if _, err := d.ReadAt(content[i], off); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(content[0], content[1]) {
		t.Errorf("%s and %s differ between %d and %d", a, b, off, off+size)
	}
}

// fill writes noise to a part of a file or device.
func fill(t testing.TB, path string, off, size int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(off), byte(size)}).Read(b)
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func TestFilesystemsComeBackWhole(t *testing.T) {
	for kind, c := range map[string]struct {
		size  int64
		check []string
		grow  string
	}{
		"ext4":  {64 * mib, []string{"e2fsck", "-fn"}, "resize2fs"},
		"xfs":   {320 * mib, []string{"xfs_repair", "-n"}, "xfs_growfs"},
		"btrfs": {128 * mib, []string{"btrfs", "check", "--readonly"}, "btrfs filesystem resize"},
	} {
		t.Run(kind, func(t *testing.T) {
			source, larger := mountstest.Disk(t, c.size), mountstest.Disk(t, c.size+8*mib)
			mountstest.Mkfs(t, kind, source)
			dir := mountstest.Mount(t, source)
			fill(t, mountstest.ImageIn(t, dir, 0), 0, 3*mib)
			mountstest.Unmount(t, dir)
			fill(t, larger, c.size/2, 2*mib) // what was there before
			o := restore.Options{StateDir: t.TempDir(), Tracker: "scan", Verify: true}
			image := copied(t, source, quiet(o.StateDir))
			var told told
			o.Progress = told.listen
			rep, err := restore.Restore(t.Context(), image, larger, o)
			if err != nil || rep.Outcome != "ok" {
				t.Fatalf("%+v, %v", rep, err)
			}
			same(t, image, larger, 0, c.size)
			told.has(t, c.grow)
			told.has(t, "has the same UUID")
			mountstest.Run(t, c.check[0], append(c.check[1:], larger)...)
		})
	}
}

// A whole disk comes back on a larger one, with a partition table that fits that.
func TestAWholeDiskComesBackOnALargerOne(t *testing.T) {
	const size, more = 64 * mib, 96 * mib
	source, parts := mountstest.Partitioned(t, size, 2)
	mountstest.Run(t, "sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--part-type", source, "1", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B")
	mountstest.Mkfs(t, "ext4", parts[1])
	mountstest.Run(t, "partx", "--delete", source) // blkid lists whole disks without partitions
	larger := mountstest.Disk(t, more)
	o := restore.Options{StateDir: t.TempDir(), Tracker: "scan"}
	image := copied(t, source, quiet(o.StateDir))
	var told told
	o.Progress = told.listen
	rep, err := restore.Restore(t.Context(), image, larger, o)
	if err != nil || !rep.Moved {
		t.Fatalf("%+v, %v", rep, err)
	}
	told.has(t, "boots from")
	told.has(t, "growpart")
	told.has(t, "sgdisk --randomize-guids")
	same(t, image, larger, 0, 446)
	same(t, image, larger, 1024, size-1024)
	if out := mountstest.Run(t, "sfdisk", "--verify", larger); !strings.Contains(out, "No errors detected") {
		t.Error(out)
	}
	mountstest.Run(t, "partx", "--update", larger)
	mountstest.Run(t, "e2fsck", "-fn", larger+"p2")

	// Where sectors are of another size, the table is no table.
	large := mountstest.Run(t, "losetup", "--find", "--show", "--sector-size", "4096", mountstest.Image(t, more))
	t.Cleanup(func() { mountstest.Run(t, "losetup", "--detach", large) })
	if rep, err = restore.Restore(t.Context(), image, large, o); err != nil || rep.Moved {
		t.Errorf("%+v, %v", rep, err)
	}
	told.has(t, "sectors of 512 bytes, and this one has 4096")
	same(t, image, large, 0, size)

	// A first copy that is damaged on the original is that of the copy, too.
	fill(t, source, 1024, 512)
	o.Overwrite = true
	if rep, err = restore.Restore(t.Context(), copied(t, source, quiet(o.StateDir)), larger, o); err != nil || rep.Moved {
		t.Errorf("%+v, %v", rep, err)
	}
	told.has(t, "first copy of its partition table cannot be read")
}

// What a disk was before may stand at its end, behind the copy, and be taken for what it is.
func TestWhatALargerDiskWasBeforeIsTold(t *testing.T) {
	source, larger := mountstest.Image(t, 32*mib), mountstest.Disk(t, 40*mib)
	mountstest.Mkfs(t, "ext4", source)
	f, err := os.OpenFile(larger, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	const at = 40*mib - 8<<10
	member := raidMember(1)
	binary.LittleEndian.PutUint64(member[144:], at/512) // format 1.0: where it is itself
	if _, err := f.WriteAt(member, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	o := restore.Options{StateDir: t.TempDir(), Tracker: "scan"}
	image := copied(t, source, quiet(o.StateDir))
	o.Overwrite = true
	var told told
	o.Progress = told.listen
	if _, err := restore.Restore(t.Context(), image, larger, o); err != nil {
		t.Fatal(err)
	}
	told.has(t, "still has the signature of a linux_raid_member")
	is := func() string {
		return mountstest.Run(t, "blkid", "--probe", "--match-tag", "TYPE", "--output", "value", larger)
	}
	if was := is(); was != "linux_raid_member" {
		t.Errorf("it is taken for %s", was)
	}
	mountstest.Run(t, "wipefs", "--all", "--quiet", "--types", "linux_raid_member", larger)
	if now := is(); now != "ext4" {
		t.Errorf("it is taken for %s", now)
	}
}

// waiting makes the image of a mirror one with an update that waits, which changes what the
// image holds, and returns that.
func waiting(t testing.TB, image string, size int64, change func(p []byte)) []byte {
	t.Helper()
	d, err := block.Open(image, block.Options{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := transaction.OpenDir(image+".tidemark", false)
	if err != nil {
		t.Fatal(err)
	}
	store, err := mirror.Open(transaction.Disk{Device: d}, dir)
	if err != nil {
		t.Fatal(err)
	}
	txn, _, err := (&mirror.Sink{Store: store, Origin: store.State().Source}).Begin(t.Context(), size, func(transfer.Event) {})
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, size)
	if _, err := d.ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	change(want)
	for off := int64(0); off < size; off += mib {
		_, perr := txn.Put([]transfer.Chunk{{Extent: extent.Extent{Off: off, Len: mib}, Data: want[off : off+mib]}})
		err = errors.Join(err, perr)
	}
	if err = errors.Join(err, txn.Seal(transfer.Commit{Time: time.Now()}), txn.Publish(), txn.Abort(transfer.RunRecord{}), store.Close(), dir.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	return want
}

func TestAMirrorIsBroughtToItsEndBeforeItIsRestored(t *testing.T) {
	const size = 4 * mib
	source := mountstest.Image(t, size)
	fill(t, source, 0, 2*mib)
	o := restore.Options{StateDir: t.TempDir(), Tracker: "scan"}
	image := copied(t, source, quiet(o.StateDir))
	want := waiting(t, image, size, func(p []byte) { copy(p, bytes.Repeat([]byte("newer"), mib/8)) })
	dst := filepath.Join(t.TempDir(), "dst.img")

	dry := o
	dry.DryRun = true
	if _, err := restore.Restore(t.Context(), image, dst, dry); !errors.Is(err, target.ErrPending) {
		t.Errorf("dry run: %v", err)
	}
	if _, err := restore.Restore(t.Context(), image, dst, o); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(dst); err != nil || !bytes.Equal(got, want) {
		t.Errorf("it is not the newer copy (%v)", err)
	}
}

// The disk of a first copy that was stopped got another use: that is not reverted. Where it
// did not, the copy goes on.
func TestAFirstCopyDoesNotGoOnOverWhatCameSince(t *testing.T) {
	source, dst := mountstest.Disk(t, 64*mib), mountstest.Disk(t, 64*mib)
	mountstest.Mkfs(t, "ext4", source)
	fill(t, source, 8*mib, 56*mib)
	stop := func() pairs.Options {
		o := quiet(t.TempDir())
		stopped, stop := context.WithCancel(t.Context())
		o.BytesPerSec = 64 * mib
		o.Progress = func(e transfer.Event) {
			if e.Phase == "copy" && e.Done >= 16*mib {
				stop()
			}
		}
		if _, err := pairs.Mirror(stopped, []pairs.Pair{{Source: source, Target: dst}}, o); err == nil {
			t.Fatal("the first copy was not stopped")
		}
		o.BytesPerSec, o.Progress = 0, nil
		return o
	}
	o := stop()
	if _, err := pairs.Mirror(t.Context(), []pairs.Pair{{Source: source, Target: dst}}, o); err != nil {
		t.Error(err)
	}
	same(t, source, dst, 0, 64*mib)

	mountstest.Run(t, "wipefs", "--all", "--quiet", dst)
	o = stop()
	mountstest.Run(t, "mkfs.ext4", "-q", "-F", dst)
	was := mountstest.Run(t, "sha256sum", dst)
	for _, adopt := range []bool{false, true} {
		o.Adopt = adopt
		_, err := pairs.Mirror(t.Context(), []pairs.Pair{{Source: source, Target: dst}}, o)
		if !errors.Is(err, pairs.ErrUsedSince) || !strings.Contains(fmt.Sprint(err), "after its first copy was stopped its ext superblock changed") {
			t.Error(err)
		}
	}
	if now := mountstest.Run(t, "sha256sum", dst); now != was {
		t.Error("it was written to")
	}
	o.Overwrite, o.Adopt = true, false
	if _, err := pairs.Mirror(t.Context(), []pairs.Pair{{Source: source, Target: dst}}, o); err != nil {
		t.Error(err)
	}
	same(t, source, dst, 0, 64*mib)
}

func TestACopyThatHasNotEndedIsNotRestored(t *testing.T) {
	source := mountstest.Image(t, 4*mib)
	fill(t, source, 0, 4*mib)
	o := restore.Options{StateDir: t.TempDir(), Tracker: "scan", Unchecked: true}
	image, dst := filepath.Join(t.TempDir(), "copy.img"), filepath.Join(t.TempDir(), "dst.img")
	stopped, stop := context.WithCancel(t.Context())
	first := quiet(o.StateDir)
	first.BytesPerSec = mib
	first.Progress = func(e transfer.Event) {
		if e.Phase == "copy" {
			stop()
		}
	}
	if _, err := pairs.Mirror(stopped, []pairs.Pair{{Source: source, Target: image}}, first); err == nil {
		t.Fatal("the first copy was not stopped")
	}
	if _, err := restore.Restore(t.Context(), image, dst, o); !errors.Is(err, target.ErrIncomplete) {
		t.Errorf("%v", err)
	}
	if _, _, err := copies.Verify(t.Context(), image, copies.Options{StateDir: o.StateDir}); !errors.Is(err, target.ErrIncomplete) {
		t.Errorf("verify: %v", err)
	}
	if _, err := os.Stat(dst); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it was made (%v)", err)
	}
}

// A rescue system mounts the disk with the copies read-only.
func TestACopyOnAReadOnlyFilesystemIsRestored(t *testing.T) {
	dir := t.TempDir()
	mountstest.Run(t, "mount", "-t", "tmpfs", "tidemark-test", dir)
	t.Cleanup(func() { mountstest.Unmount(t, dir) })
	source, image := mountstest.Image(t, 4*mib), filepath.Join(dir, "copy.img")
	fill(t, source, mib, 2*mib)
	o := restore.Options{StateDir: t.TempDir(), Tracker: "scan", Verify: true}
	if _, err := pairs.Mirror(t.Context(), []pairs.Pair{{Source: source, Target: image}}, quiet(o.StateDir)); err != nil {
		t.Fatal(err)
	}
	mountstest.Run(t, "mount", "-o", "remount,ro", dir)
	dst := mountstest.Disk(t, 4*mib)
	if _, err := restore.Restore(t.Context(), image, dst, o); err != nil {
		t.Fatal(err)
	}
	same(t, source, dst, 0, 4*mib)
}

// What the other test below kills.
func TestRestoreToBeKilled(t *testing.T) {
	args := strings.Split(os.Getenv("TIDEMARK_TEST_RESTORE"), ",")
	if len(args) != 3 {
		return
	}
	o := restore.Options{StateDir: args[2], BytesPerSec: 60 * mib, Overwrite: true}
	if _, err := restore.Restore(context.Background(), args[0], args[1], o); err != nil {
		t.Fatal(err)
	}
}

func TestARestoreThatWasKilledGoesOn(t *testing.T) {
	const size = 300 * mib
	source, dst := mountstest.Image(t, size), mountstest.Disk(t, size)
	for off := int64(0); off < size; off += 30 * mib {
		fill(t, source, off, 20*mib)
	}
	fill(t, dst, 200*mib, 50*mib)
	o := restore.Options{StateDir: t.TempDir(), Tracker: "scan"}
	image := copied(t, source, quiet(o.StateDir))
	found, err := target.Find(dst, o.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestRestoreToBeKilled$")
		cmd.Env = append(os.Environ(), fmt.Sprintf("TIDEMARK_TEST_RESTORE=%s,%s,%s", image, dst, o.StateDir))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		mountstest.Eventually(t, "a position", func() bool {
			st, is, _ := restore.Unfinished(found.Folder)
			return is && (round == 0 || st.Copied > 0)
		})
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
		if err := errors.Join(cmd.Process.Kill(), ignore(cmd.Wait())); err != nil {
			t.Fatal(err)
		}
		if _, err := pairs.Mirror(t.Context(), []pairs.Pair{{Source: dst, Target: image}}, quiet(o.StateDir)); round < 2 && !errors.Is(err, restore.ErrHalf) {
			t.Fatalf("round %d: the copy is overwritten with half of it: %v", round, err)
		}
	}
	// Somebody else's write is found, and nobody else's work is overwritten unasked.
	st, is, err := restore.Unfinished(found.Folder)
	if err != nil || !is || st.Copied == 0 {
		t.Fatalf("%d, %v, %v", st.Copied, is, err)
	}
	fill(t, dst, mib, 4096)
	mountstest.Run(t, "mkswap", dst)
	if _, err := restore.Restore(t.Context(), image, dst, o); !errors.Is(err, target.ErrHoldsOther) {
		t.Errorf("%v", err)
	}
	o.Overwrite = true
	rep, err := restore.Restore(t.Context(), image, dst, o)
	if err != nil || rep.Mode != restore.Resumed || rep.Compared != st.Copied || rep.Read >= 200*mib {
		t.Errorf("%+v, %v", rep, err)
	}
	same(t, image, dst, 0, size)
}

// ignore is about a process that was killed.
func ignore(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// A partition that is half restored is not copied with its disk, nor as the whole.
func TestNothingOverAHalfRestoredPartIsCopied(t *testing.T) {
	disk, parts := mountstest.Partitioned(t, 64*mib, 2)
	o := restore.Options{StateDir: t.TempDir(), Tracker: "scan"}
	source := mountstest.Image(t, 8*mib)
	fill(t, source, 0, 8*mib)
	image := copied(t, source, quiet(o.StateDir))
	fill(t, image, 5*mib, 4096) // damaged: the restore does not end
	if _, err := restore.Restore(t.Context(), image, parts[0], o); !errors.Is(err, restore.ErrDamaged) {
		t.Fatal(err)
	}
	for source, refused := range map[string]bool{disk: true, parts[0]: true, parts[1]: false} {
		_, err := pairs.Mirror(t.Context(), []pairs.Pair{{Source: source, Target: filepath.Join(t.TempDir(), "copy")}}, quiet(o.StateDir))
		if errors.Is(err, restore.ErrHalf) != refused {
			t.Errorf("%s: %v", source, err)
		}
	}
	if _, err := pairs.Recover(t.Context(), parts[0], true, quiet(o.StateDir)); err != nil {
		t.Fatal(err)
	}
	copied(t, disk, quiet(o.StateDir))
}

// What is a hole in the copy costs nothing.
func TestASparseCopyIsRestoredAtOnce(t *testing.T) {
	const size = 20 << 30
	source := mountstest.Image(t, size)
	fill(t, source, size/2, mib)
	o := restore.Options{StateDir: t.TempDir(), Tracker: "scan"}
	image, dst := copied(t, source, quiet(o.StateDir)), filepath.Join(t.TempDir(), "dst.img")
	began := time.Now()
	rep, err := restore.Restore(t.Context(), image, dst, o)
	if err != nil || rep.Read > 2*mib || rep.Written > 2*mib {
		t.Errorf("%+v, %v", rep, err)
	}
	t.Logf("%v", time.Since(began))
	same(t, source, dst, size/2-mib, 3*mib)
	if info, err := os.Stat(dst); err != nil || info.Size() != size {
		t.Errorf("%d bytes, %v", info.Size(), err)
	}
}

// With little room for the journal nothing is written.
func TestAJournalThatDoesNotFitIsRefused(t *testing.T) {
	dir := t.TempDir()
	mountstest.Run(t, "mount", "-t", "tmpfs", "-o", "size="+strconv.Itoa(2*mib), "tidemark-test", dir)
	t.Cleanup(func() { mountstest.Unmount(t, dir) })
	o := restore.Options{StateDir: t.TempDir(), Tracker: "scan"}
	source := mountstest.Disk(t, 16*mib)
	fill(t, source, 0, 16*mib)
	image := copied(t, source, quiet(o.StateDir))
	fill(t, source, 4*mib, 6*mib)
	changed := filepath.Join(t.TempDir(), "changed")
	mountstest.Run(t, "cp", source, changed)
	o.StateDir = dir
	if _, err := restore.Restore(t.Context(), image, source, o); !errors.Is(err, restore.ErrNoJournalRoom) {
		t.Errorf("%v", err)
	}
	same(t, changed, source, 0, 16*mib)
	o.NoJournal = true
	if rep, err := restore.Restore(t.Context(), image, source, o); err != nil || rep.Written != 6*mib {
		t.Errorf("%+v, %v", rep, err)
	}
	same(t, image, source, 0, 16*mib)
}
