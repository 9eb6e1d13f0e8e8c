//go:build linux

// Package mirror_test runs in guests only (see package guest): the command mirrors
// busy filesystems on the device stacks of real kernels.
package mirror_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"tidemark/linux/sysfs"
	"tidemark/test/vm/guest"
)

func TestMain(m *testing.M) { guest.Main(m) }

// source is a filesystem on some kind of device.
type source struct {
	name        string
	device      func(t testing.TB) string
	mkfs, check string // the device, or the image, is appended
}

const (
	mkfsExt4, checkExt4   = "mkfs.ext4 -q", "e2fsck -fn"
	mkfsXFS, checkXFS     = "mkfs.xfs -q", "xfs_repair -n"
	mkfsBtrfs, checkBtrfs = "mkfs.btrfs -q", "btrfs check --readonly"
)

func sources() []source {
	return []source{
		{"ext4 on virtio-blk", func(t testing.TB) string { return guest.Disk(t, "data") }, mkfsExt4, checkExt4},
		{"ext4 on virtio-scsi", func(t testing.TB) string { return guest.Disk(t, "scsi") }, mkfsExt4, checkExt4},
		{"xfs on virtio-blk", func(t testing.TB) string { return guest.Disk(t, "large") }, mkfsXFS, checkXFS},
		{"btrfs on virtio-blk", func(t testing.TB) string { return guest.Disk(t, "data") }, mkfsBtrfs, checkBtrfs},
		{"ext4 on dm-linear", func(t testing.TB) string { return linear(t, "data") }, mkfsExt4, checkExt4},
		{"xfs on dm-linear", func(t testing.TB) string { return linear(t, "large") }, mkfsXFS, checkXFS},
		{"ext4 on dm-crypt", crypt, mkfsExt4, checkExt4},
		{"btrfs on dm-crypt", crypt, mkfsBtrfs, checkBtrfs},
		{"ext4 on dm-thin", thin, mkfsExt4, checkExt4},
	}
}

func linear(t testing.TB, name string) string {
	disk := guest.Disk(t, name)
	return guest.Mapper(t, "linear", "0 "+guest.Sectors(t, disk)+" linear "+disk+" 0")
}

func crypt(t testing.TB) string {
	guest.Modprobe(t, "dm-crypt")
	key := strings.Repeat("42", 64)
	return guest.Mapper(t, "crypt", "0 262144 crypt aes-xts-plain64 "+key+" 0 "+guest.Disk(t, "data")+" 0")
}

func thin(t testing.TB) string {
	guest.Modprobe(t, "dm-thin-pool")
	disk := guest.Disk(t, "data")
	meta := guest.Mapper(t, "thinmeta", "0 8192 linear "+disk+" 0")
	guest.Run(t, "blkdiscard", "-z", meta)
	data := guest.Mapper(t, "thindata", "0 245760 linear "+disk+" 8192")
	pool := guest.Mapper(t, "pool", "0 245760 thin-pool "+meta+" "+data+" 128 0")
	guest.Run(t, "dmsetup", "message", pool, "0", "create_thin 0")
	return guest.Mapper(t, "thin", "0 163840 thin "+pool+" 0")
}

// Every run under load ends with a filesystem that checks clean; a run at rest ends
// with the same files.
func TestLiveMirror(t *testing.T) {
	for _, s := range sources() {
		t.Run(s.name, func(t *testing.T) {
			device := s.device(t)
			guest.Run(t, "wipefs", "-aq", device)
			command(t, s.mkfs, device)
			mount := t.TempDir()
			guest.Run(t, "mount", device, mount)
			t.Cleanup(func() { guest.Run(t, "umount", mount) })
			t.Cleanup(func() { guest.Run(t, "tidemark", "track", "stop", device) })
			image := filepath.Join(t.TempDir(), "mirror.img")

			stop := load(t, mount)
			for range 2 {
				t.Log(guest.Run(t, "tidemark", "mirror", "--json", "--force-freeze", device, image))
				s.checkCopy(t, image)
			}
			stop()
			t.Log(guest.Run(t, "tidemark", "mirror", "--json", device, image))
			shown(t, mount, image)
			sameFiles(t, mount, s.checkCopy(t, image))
		})
	}
}

// command runs a command line with one more argument.
func command(t *testing.T, line, last string) {
	t.Helper()
	words := strings.Fields(line)
	guest.Run(t, words[0], append(words[1:], last)...)
}

// checkCopy checks a copy of the image and returns the copy: a journal may have to be
// replayed, which must not write to the mirror itself. XFS leaves its log to be
// replayed even in a frozen filesystem, and its checker does not replay it.
func (s source) checkCopy(t *testing.T, image string) string {
	t.Helper()
	copied := image + ".copy"
	guest.Run(t, "cp", image, copied)
	if s.check == checkXFS {
		mount := t.TempDir()
		guest.Run(t, "mount", "-o", "loop,nouuid", copied, mount)
		guest.Run(t, "umount", mount)
	}
	command(t, s.check, copied)
	return copied
}

// load writes and renames files until the returned function is called, at the latest
// at the end of the test.
func load(t *testing.T, mount string) func() {
	done := make(chan struct{})
	var writers sync.WaitGroup
	for w := range 2 {
		writers.Go(func() {
			guest.StepBack()
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				if err := churn(filepath.Join(mount, strconv.Itoa(w)), i); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	stop := sync.OnceFunc(func() {
		close(done)
		writers.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// churn does step i of one writer, whose files begin with prefix.
func churn(prefix string, i int) error {
	name := fmt.Sprintf("%s-%d", prefix, i%20)
	data := bytes.Repeat([]byte(strconv.Itoa(i)), 1+i%37*400)
	f, err := os.Create(name + ".new")
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// Before Linux 5.11 the kernel counts what tracking needs as locked memory: its limit is raised.
func TestTrackingWhereLittleMemoryMayBeLocked(t *testing.T) {
	disk, image := guest.Disk(t, "scsi"), filepath.Join(t.TempDir(), "mirror.img")
	limited := func(command string) string {
		t.Helper()
		return guest.Run(t, "sh", "-c", "ulimit -l 64 && tidemark "+command)
	}
	if out := limited("doctor"); !strings.Contains(out, "runs read only what changed") {
		t.Errorf("doctor says: %s", out)
	}
	limited("mirror --tracker bpf " + disk + " " + image)
	guest.Run(t, "tidemark", "track", "stop", disk)
}

// The files of an encrypted copy are shown as its refusal says.
func TestTheCopyOfAnEncryptedDiskIsOpenedWithItsKey(t *testing.T) {
	guest.Modprobe(t, "dm-crypt")
	disk, mount, dir := guest.Disk(t, "data"), t.TempDir(), t.TempDir()
	key, image := filepath.Join(t.TempDir(), "key"), filepath.Join(t.TempDir(), "mirror.img")
	guest.WriteFile(t, key, "key")
	guest.Run(t, "cryptsetup", "luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", key, disk)
	guest.Run(t, "cryptsetup", "open", "--key-file", key, disk, "opened")
	t.Cleanup(func() { guest.Run(t, "cryptsetup", "close", "opened") })
	command(t, mkfsExt4, "/dev/mapper/opened")
	guest.Run(t, "mount", "/dev/mapper/opened", mount)
	t.Cleanup(func() { guest.Run(t, "umount", mount) })
	guest.WriteFile(t, filepath.Join(mount, "file"), "not synced")
	guest.Run(t, "tidemark", "mirror", "--view", "freeze", disk, image)
	t.Cleanup(func() { guest.Run(t, "tidemark", "track", "stop", disk) })

	fails(t, "cryptsetup open --readonly", "tidemark", "mount", image, dir)
	guest.Run(t, "cryptsetup", "open", "--readonly", "--key-file", key, guest.Loop(t, image, "--read-only"), "copy")
	t.Cleanup(func() { guest.Run(t, "cryptsetup", "close", "copy") })
	guest.Run(t, "tidemark", "mount", "/dev/mapper/copy", dir)
	if want, got := files(t, mount), files(t, dir); !maps.Equal(want, got) {
		t.Errorf("of %d files %d are shown, or they differ", len(want), len(got))
	}
	guest.Run(t, "tidemark", "umount", dir)
}

// sameFiles compares the files in a copied image with those of the mounted source. The
// kernel must not take the one filesystem for the other, which is mounted.
func sameFiles(t *testing.T, mount, image string) {
	t.Helper()
	options := "loop"
	switch guest.Run(t, "blkid", "-o", "value", "-s", "TYPE", image) {
	case "xfs":
		options = "loop,nouuid"
	case "btrfs":
		guest.Run(t, "btrfstune", "-f", "-u", image)
	}
	copied := t.TempDir()
	guest.Run(t, "mount", "-o", options, image, copied)
	defer guest.Run(t, "umount", copied)
	want, got := files(t, mount), files(t, copied)
	if len(want) < 20 || !maps.Equal(want, got) {
		t.Errorf("the mirror has %d files, the source %d, or they differ", len(got), len(want))
	}
}

// shown wants "tidemark mount" to show the files of an image beside the mounted source. Of a
// Btrfs the kernel would not before Linux 6.7, nor the other way round: that is refused, and
// the remedy works.
func shown(t *testing.T, mount, image string) {
	t.Helper()
	dir := t.TempDir()
	loops := guest.Run(t, "losetup", "--list")
	source := guest.Run(t, "findmnt", "-n", "-o", "SOURCE", mount)
	alone, err := sysfs.KernelBefore(6, 7)
	if err != nil {
		t.Fatal(err)
	}
	if alone && guest.Run(t, "blkid", "-o", "value", "-s", "TYPE", image) == "btrfs" {
		fails(t, "File exists", "mount", "-o", "loop,ro,rescue=nologreplay", image, dir)
		refused(t, []string{"mount", image, dir}, "before Linux 6.7", "btrfstune -u")
		if now := guest.Run(t, "losetup", "--list"); now != loops {
			t.Errorf("a refusal leaves loop devices: %s", now)
		}
		guest.Run(t, "umount", mount)
		guest.Run(t, "tidemark", "mount", image, dir)
		fails(t, "File exists", "mount", source, mount)
		guest.Run(t, "tidemark", "umount", dir)
		guest.Run(t, "mount", source, mount)
		own := image + ".own"
		guest.Run(t, "cp", image, own)
		guest.Run(t, "btrfstune", "-f", "-u", own)
		image = own
	}
	t.Log(guest.Run(t, "tidemark", "mount", image, dir))
	want, got := files(t, mount), files(t, dir)
	if len(want) < 20 || !maps.Equal(want, got) {
		t.Errorf("of %d files %d are shown, or they differ", len(want), len(got))
	}
	refused(t, []string{"mirror", "--force", source, image}, "tidemark umount "+dir)
	guest.Run(t, "tidemark", "umount", dir)
}

// fails wants a program to fail with this text.
func fails(t *testing.T, text, program string, args ...string) {
	t.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err == nil || !strings.Contains(string(out), text) {
		t.Errorf("%s %v: %v, not %q: %s", program, args, err, text, out)
	}
}

// Linux cannot freeze vfat, as the EFI partition is: it is copied alone while it is not
// mounted read-write, and otherwise with a disk that has a filesystem which can be frozen.
func TestVfatIsCopiedWithItsDiskOrReadOnly(t *testing.T) {
	guest.Modprobe(t, "vfat", "nls_cp437", "nls_ascii", "nls_iso8859-1")
	disk := guest.Disk(t, "data")
	efi, root := disk+"1", disk+"2"
	guest.Run(t, "sh", "-c", "printf 'label: gpt\nsize=16MiB\nsize=64MiB\n' | sfdisk -q "+disk)
	t.Cleanup(func() { guest.Run(t, "sfdisk", "-q", "--delete", disk) })
	guest.Run(t, "dd", "if=/vfat.img", "of="+efi, "bs=1M")
	command(t, mkfsExt4, root)
	at, dir, images := []string{t.TempDir(), t.TempDir()}, t.TempDir(), t.TempDir()
	for i, part := range []string{efi, root} {
		guest.Run(t, "mount", part, at[i])
		guest.WriteFile(t, filepath.Join(at[i], "file"), "not synced")
	}
	whole, alone := filepath.Join(images, "whole.img"), filepath.Join(images, "alone.img")
	fails(t, "cannot be frozen", "tidemark", "mirror", efi, alone)
	guest.Run(t, "tidemark", "mirror", disk, whole)
	guest.Run(t, "tidemark", "mount", whole, dir)
	for i, mount := range at {
		if want, got := files(t, mount), files(t, filepath.Join(dir, "p"+strconv.Itoa(i+1))); !maps.Equal(want, got) {
			t.Errorf("partition %d: %d files are shown, not %d, or they differ", i+1, len(got), len(want))
		}
	}
	guest.Run(t, "tidemark", "umount", dir)
	guest.Run(t, "mount", "-o", "remount,ro", at[0])
	guest.Run(t, "tidemark", "mirror", efi, alone)
	guest.Run(t, "umount", at[0])
	guest.Run(t, "umount", at[1])
	guest.Run(t, "tidemark", "track", "stop", disk)
	guest.Run(t, "cp", alone, "/out/read-only.vfat") // the host checks them
	guest.Run(t, "dd", "if="+whole, "of=/out/read-write.vfat", "bs=1M", "skip=1", "count=16")
}

// files returns a checksum of every file below dir.
func files(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	sums := map[string][32]byte{}
	tree := os.DirFS(dir)
	err := fs.WalkDir(tree, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := fs.ReadFile(tree, path)
		sums[path] = sha256.Sum256(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums
}
