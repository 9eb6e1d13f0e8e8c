package live_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTargetsThatWouldHarmAreRefusedAndUntouched(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	part := partitioned(t, dir, diskSize)
	disk := part[:len(part)-len("p2")]
	at := mount(t, "ext4", part, dir)
	own := filepath.Join(at, "own.img")
	must(t, "truncate", "--size", strconv.Itoa(diskSize), own)
	must(t, "mkfs.ext4", "-q", "-F", disk+"p1")
	image := filepath.Join(dir, "source.img")
	link := filepath.Join(dir, "link")
	if err := os.Symlink(image, link); err != nil {
		t.Fatal(err)
	}
	other := folder(t, dir, "other")
	over := loopOver(t, disk)
	overOver := loopOver(t, over)
	used := loop(t, other, 16*mib)
	mount(t, "ext4", used, other)

	for _, tt := range []struct{ name, src, dst, why string }{
		{"the source itself", part, part, "it is the source"},
		{"the disk of the source", part, disk, "it is the source"},
		{"a partition of the source", disk, part, "it is the source"},
		{"another partition of the source", disk, disk + "p1", "it is the source"},
		{"the file below the source", disk, image, "refused"},
		{"the file below the partition", part, image, "refused"},
		{"a link to the file below", part, link, "refused"},
		{"a disk over the source", image, part, "refused"},
		{"a device made of the source", disk, over, "lies on it"},
		{"a device made of a device made of the source", disk, overOver, "lies on it"},
		{"a device over the file that is the source", image, overOver, "lies on it"},
		{"a mounted device", part, used, "mounted"},
		{"an image on the source", part, filepath.Join(at, "new.img"), "lies on a filesystem of the source"},
		{"a device over an image on the source", part, loopOver(t, own), "lies on a filesystem of the source"},
		{"the file of a mounted device", part, filepath.Join(other, "source.img"), "refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, flags := range [][]string{nil, {"--force"}, {"--tracker", "scan"}, {"--dry-run"}} {
				p.exits(t, exitRefused, []string{tt.why, "hint: "}, append(append([]string{"mirror"}, flags...), tt.src, tt.dst)...)
			}
			if exists(tt.dst+".tidemark") || exists(p.stateDir) || exists(p.runDir) {
				t.Error("something was made for it")
			}
		})
	}
	t.Run("a device with a filesystem", func(t *testing.T) {
		source := loop(t, folder(t, dir, "source"), 8*mib)
		was, err := lookAt(disk + "p1")
		if err != nil {
			t.Fatal(err)
		}
		p.exits(t, exitRefused, []string{"it holds ext"}, "mirror", source, disk+"p1")
		sameBytes(t, was, disk+"p1")
		p.mirror(t, "--force", source, disk+"p1")
		p.exits(t, exitOK, nil, "mirror", source, disk+"p1") // a mirror of ours by now
	})
}

func TestDryRunWritesAndStartsNothing(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	dev := loop(t, dir, diskSize)
	at := mount(t, "ext4", dev, dir)
	image := filepath.Join(dir, "mirror.img")
	p.exits(t, exitOK, []string{"would read", "full"}, "mirror", "--dry-run", dev, image)
	if exists(image) || exists(image+".tidemark") || exists(p.stateDir) {
		t.Error("a dry run made something")
	}
	if f := p.exits(t, exitOK, nil, "track", "status", "--json"); f.out != "[]\n" {
		t.Errorf("a dry run started tracking: %s", f.out)
	}
	p.mirror(t, dev, image)
	fill(t, filepath.Join(at, "file"), 0, 4*mib)
	was := look(t, image, image+".tidemark")
	f := p.exits(t, exitOK, nil, "mirror", "--dry-run", "--json", dev, image)
	if rep := f.reports(t)[0]; rep.Mode != "incremental" || rep.Read < 4*mib || rep.Read > diskSize/2 {
		t.Errorf("planned %+v", rep)
	}
	untouched(t, was, image, image+".tidemark")
	if rep := p.mirror(t, dev, image); rep.Mode != "incremental" {
		t.Errorf("mode %s: the dry run spoilt the mark", rep.Mode)
	}
	p.exits(t, exitOK, nil, "track", "stop", dev)
	p.exits(t, exitOK, []string{"is not tracked"}, "mirror", "--dry-run", dev, image)
	if f := p.exits(t, exitOK, nil, "track", "status", "--json"); f.out != "[]\n" {
		t.Errorf("a dry run started tracking: %s", f.out)
	}
}

// What is not there to be frozen is found out before anything is made.
func TestRefusedViewLeavesNothingBehind(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	dev, image := loop(t, dir, 8*mib), filepath.Join(dir, "mirror.img")
	p.exits(t, exitRefused, []string{"no writable filesystem is mounted"}, "mirror", "--view", "freeze", dev, image)
	if exists(image) || exists(image+".tidemark") || exists(p.stateDir) {
		t.Error("something was made for it")
	}
	if f := p.exits(t, exitOK, nil, "track", "status", "--json"); f.out != "[]\n" {
		t.Errorf("tracking was started: %s", f.out)
	}
	m := halfApplied(t)
	was := look(t, m.beside()...)
	m.exits(t, exitRefused, nil, "mirror", "--view", "freeze", m.dev, m.image)
	untouched(t, was, m.beside()...)
}

// The same size proves nothing: round sizes are what images of virtual machines have in
// common.
func TestImageThatIsNoMirrorIsKeptUnlessToldOtherwise(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	dev, image := loop(t, dir, 64*mib), filepath.Join(dir, "mirror.img")
	must(t, "mkfs.ext4", "-q", dev)
	must(t, "cp", "--sparse=always", dev, image)
	fill(t, image, 40*mib, 4096)
	for _, at := range []int64{8, 16, 24} { // mostly the same, in what is not zeros
		fill(t, dev, at*mib, 4*mib)
		must(t, "dd", "if="+dev, "of="+image, "bs=1M", "conv=notrunc", "seek="+strconv.FormatInt(at, 10), "skip="+strconv.FormatInt(at, 10), "count=4", "status=none")
	}
	fill(t, image, 17*mib, mib)
	vm := filepath.Join(dir, "vm.img")
	must(t, "truncate", "--size", "64M", vm)
	// With the UUID of the source: one that has another is refused without a comparison.
	uuid := must(t, "blkid", "-p", "-o", "value", "-s", "UUID", dev)
	must(t, "mkfs.ext4", "-q", "-L", "VMDISK", "-U", uuid, vm)
	fill(t, vm, 8*mib, 8*mib)
	was := look(t, image, vm)
	for _, flags := range [][]string{nil, {"--dry-run"}} {
		for _, dst := range []string{image, vm} {
			p.exits(t, exitRefused, []string{"not known to be a copy of", "hint: ", "--adopt", "--force"}, append(append([]string{"mirror"}, flags...), dev, dst)...)
		}
		p.exits(t, exitRefused, []string{"places that were compared", "it is no older copy"}, append(append([]string{"mirror", "--adopt"}, flags...), dev, vm)...)
	}
	p.exits(t, exitOK, []string{"would read", "scan", "overwriting what differs", "places that were compared"}, "mirror", "--dry-run", "--adopt", dev, image)
	f := p.exits(t, exitOK, []string{"overwriting it as forced to, though it exists", "places that were compared"}, "mirror", "--dry-run", "--force", "--json", dev, vm)
	if !strings.Contains(f.out, "as forced to") { // for programs, too
		t.Errorf("it said %s", f.out)
	}
	untouched(t, was, image, vm)
	if exists(image+".tidemark") || exists(vm+".tidemark") || exists(p.stateDir) {
		t.Error("something was made for it")
	}

	f = p.exits(t, exitOK, []string{"it exists, and is no mirror", "scan"}, "mirror", "--adopt", dev, image)
	if strings.Contains(f.out, "full") {
		t.Errorf("it said %s", f.out)
	}
	sameContent(t, dev, image)
	if f := p.exits(t, exitOK, nil, "mirror", "--adopt", dev, image); strings.Contains(f.err, "no mirror") {
		t.Errorf("it is one by now: %s", f.err)
	}
	p.mirror(t, "--force", dev, vm)
	sameContent(t, dev, vm)
	hole := filepath.Join(dir, "hole.img")
	must(t, "truncate", "--size", "64M", hole)
	if rep := p.mirror(t, dev, hole); rep.Mode != "full" {
		t.Errorf("a file that holds nothing: mode %s", rep.Mode)
	}
	sameContent(t, dev, hole)
}

// A virtual machine has its disk open for writing, or locked; nothing else shows it.
func TestImageThatAnotherProgramUsesIsRefused(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	dev, image := loop(t, dir, 8*mib), filepath.Join(dir, "mirror.img")
	fill(t, dev, 0, 8*mib)
	p.mirror(t, dev, image)
	was := look(t, image, image+".tidemark")
	for name, flags := range map[string]int{"open for writing by ": os.O_RDWR, "locked by another program": os.O_RDONLY} {
		f, err := os.OpenFile(image, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if flags == os.O_RDONLY {
			lock := unix.Flock_t{Type: unix.F_RDLCK, Start: 100, Len: 1}
			if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
				t.Fatal(err)
			}
		}
		for _, args := range [][]string{nil, {"--force"}, {"--adopt"}, {"--dry-run"}} {
			p.exits(t, exitRefused, []string{name, "hint: ", "--force does not help"}, append(append([]string{"mirror"}, args...), dev, image)...)
		}
		f.Close()
	}
	untouched(t, was, image, image+".tidemark")
	p.mirror(t, dev, image)
}

// Arguments that were swapped after a restore, or an image that was mounted by mistake: a
// run would revert what was done since.
func TestTargetThatWasUsedSinceIsNotReverted(t *testing.T) {
	for kind, size := range map[string]int64{"ext4": 64 * mib, "xfs": 300 * mib, "btrfs": 128 * mib} {
		t.Run(kind, func(t *testing.T) {
			dir := scratch(t)
			p := newProgram(t, dir)
			dev, dst := loop(t, folder(t, dir, "source"), size), loop(t, folder(t, dir, "target"), size)
			must(t, "mkfs."+kind, "-q", dev)
			with := func(dev, options string, do func(at string)) {
				at := folder(t, dir, "at")
				if kind == "xfs" {
					options += ",nouuid"
				}
				must(t, "mount", "-o", options, dev, at)
				do(at)
				must(t, "umount", at)
			}
			write := func(at string) { fill(t, filepath.Join(at, "precious"), 0, 4096) }
			with(dev, "rw", write)
			p.mirror(t, dev, dst)
			with(dst, "ro", func(string) {})
			p.mirror(t, dev, dst)
			with(dst, "rw", func(at string) { // nothing new is allocated
				fill(t, filepath.Join(at, "precious"), 0, 4096)
			})
			was, err := lookAt(dst)
			if err != nil {
				t.Fatal(err)
			}
			for _, flags := range [][]string{nil, {"--adopt"}, {"--dry-run"}} {
				code, words := exitRefused, []string{"it was used since the last run", "changed", "--force"}
				if kind == "xfs" && flags != nil && flags[0] == "--dry-run" {
					code, words = exitOK, []string{"or refuses it where its xfs was changed"} // all of it would have to be read
				}
				p.exits(t, code, words, append(append([]string{"mirror"}, flags...), dev, dst)...)
			}
			p.exits(t, exitDifferent, nil, "verify", dst) // which says that it was damaged
			p.exits(t, exitRefused, []string{"it was used since the last run"}, "mirror", dev, dst)
			sameBytes(t, was, dst)
			p.exits(t, exitOK, []string{"as forced to, though after the copy of"}, "mirror", "--force", dev, dst)
			p.exits(t, exitOK, nil, "verify", dst, "--against", dev)
			p.mirror(t, dev, dst)
		})
	}
}

// In a partition, a filesystem made anew, a table changed, or an encrypted volume that was
// in use: the disk was used as well.
func TestTargetDiskThatWasUsedSinceIsNotReverted(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	image := filepath.Join(dir, "disk.img")
	must(t, "truncate", "--size", "128M", image)
	must(t, "sh", "-c", "printf 'label: gpt\nsize=32MiB\nsize=32MiB\nsize=32MiB\n' | sfdisk --quiet "+image)
	put := func(file, content string, part int64) {
		must(t, "dd", "if="+content, "of="+file, "bs=1M", "conv=notrunc", "oflag=seek_bytes", "seek="+strconv.FormatInt(mib+32*mib*(part-1), 10), "status=none")
	}
	fs, locked := filepath.Join(dir, "fs"), filepath.Join(dir, "locked")
	must(t, "truncate", "--size", "32M", fs)
	must(t, "mkfs.ext4", "-q", fs)
	put(image, fs, 2)
	if err := os.WriteFile(locked, []byte("LUKS\xba\xbe\x00\x02"), 0o600); err != nil {
		t.Fatal(err)
	}
	put(image, locked, 3)
	for name, c := range map[string]struct {
		use func(mirror string)
		why string // "" is repaired
	}{
		"a filesystem made anew": {func(m string) {
			must(t, "mkfs.ext4", "-q", "-F", fs)
			put(m, fs, 2)
		}, "partition 2's ext superblock changed"},
		"a table changed": {func(m string) {
			must(t, "sfdisk", "--quiet", "--delete", m, "1")
		}, "its partition table changed"},
		"an encrypted volume in use":   {func(m string) { fill(t, m, 90*mib, 4096) }, "partition 3's crypto_LUKS changed"},
		"a flipped byte in free space": {func(m string) { fill(t, m, 10*mib, 4096) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			m := filepath.Join(dir, "mirror.img")
			p.mirror(t, "--force", image, m)
			c.use(m)
			if c.why == "" {
				p.exits(t, exitOK, []string{"4096 bytes were changed by someone else"}, "mirror", image, m)
				sameContent(t, image, m)
				return
			}
			was, err := lookAt(m)
			if err != nil {
				t.Fatal(err)
			}
			p.exits(t, exitRefused, []string{c.why}, "mirror", image, m)
			sameBytes(t, was, m)
		})
	}
}

// What cannot be tracked is read while it is frozen. That takes too long, however little is
// written: what helps is to name the device. Nothing was copied, and nothing is left behind.
func TestFileBehindAMountedDeviceNamesTheDeviceAndLeavesNothing(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	dev := loop(t, dir, diskSize)
	mount(t, "ext4", dev, dir)
	file, image := filepath.Join(dir, "source.img"), filepath.Join(folder(t, dir, "backup"), "mirror.img")
	p.exits(t, exitNoConverge, []string{"a file cannot be", dev, "hint: "}, "mirror", "--max-freeze", "10ms", file, image)
	if exists(image) || exists(image+".tidemark") {
		t.Error("an image without content is left")
	}
	p.exits(t, exitOK, nil, "mirror", dev, image)
}

func TestTargetThatIsADanglingLinkIsSaidToBeOne(t *testing.T) {
	dir := scratch(t)
	p := newProgram(t, dir)
	dev, link := loop(t, dir, 8*mib), filepath.Join(dir, "link.img")
	if err := os.Symlink("disk/that/is/not/mounted.img", link); err != nil {
		t.Fatal(err)
	}
	for _, flags := range [][]string{nil, {"--force"}, {"--dry-run"}} {
		p.exits(t, exitError, []string{"a symbolic link to disk/that/is/not/mounted.img"}, append(append([]string{"mirror"}, flags...), dev, link)...)
	}
}

func TestImmutableImageIsSaidToBeOne(t *testing.T) {
	dir := t.TempDir() // tmpfs has no such attribute everywhere
	p := newProgram(t, scratch(t))
	dev, image := loop(t, dir, 8*mib), filepath.Join(dir, "mirror.img")
	p.mirror(t, dev, image)
	must(t, "chattr", "+i", image)
	t.Cleanup(func() { must(t, "chattr", "-i", image) })
	f := p.exits(t, exitError, []string{"it is immutable", "hint: ", "chattr -i"}, "mirror", dev, image)
	if strings.Contains(f.err, "run as root") {
		t.Errorf("it said %s", f.err)
	}
}
