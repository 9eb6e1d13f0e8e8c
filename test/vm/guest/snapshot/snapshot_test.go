//go:build linux

// Package snapshot_test runs in guests only (see package guest): snapshots of devices in use, by the
// kernel's dm-snapshot.
package snapshot_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/dmera"
	"tidemark/linux/dmhold"
	"tidemark/linux/fsfreeze"
	"tidemark/linux/reexec"
	"tidemark/snapshot"
	"tidemark/test/vm/guest"
	"tidemark/test/vm/guest/instant"
	"tidemark/track/bpf"
)

func TestMain(m *testing.M) {
	reexec.Main(dmhold.Holder, dmera.Step, fsfreeze.Watchdog, instant.Churner, laster)
	guest.Main(m)
}

const (
	sectors = 81920 // of an origin: 40 MiB
	bytes   = sectors * 512
)

var options = snapshot.Options{StateDir: "/var/lib/tidemark", Track: bpf.Options{RunDir: "/run/tidemark"}}

// origin makes the i-th device, with a filesystem that is mounted, and returns its name and where.
// At the end of the test all has to be as it was.
func origin(t *testing.T, i int, kind string) (name, at string) {
	t.Helper()
	name, at = fmt.Sprintf("X%d", i), t.TempDir()
	table := fmt.Sprintf("0 %d linear %s %d", sectors, guest.Disk(t, "data"), i*sectors)
	path := guest.Mapper(t, name, table)
	mkfs(t, kind, path)
	guest.Run(t, "mount", path, at)
	t.Cleanup(func() {
		sweep(t)
		guest.Run(t, "umount", at)
		if now := guest.Run(t, "dmsetup", "table", name); !strings.HasPrefix(now, fmt.Sprintf("0 %d linear ", sectors)) {
			t.Errorf("the table of %s is %q", name, now)
		}
	})
	return name, at
}

// sweep ends what a test that failed has left: the next one needs the disk.
func sweep(t *testing.T) {
	t.Helper()
	if !t.Failed() {
		return
	}
	list, err := snapshot.List(options)
	for _, s := range list {
		err = errors.Join(err, s.Destroy(context.Background(), true))
	}
	t.Logf("left behind, and destroyed: %d snapshots: %v", len(list), err)
}

// mkfs makes a filesystem, all of it: what the kernel would write later may be more than a small store
// has room for.
func mkfs(t *testing.T, kind, path string) {
	t.Helper()
	for _, name := range []string{"TEST_DIR", "TEST_DEV", "QA_CHECK_FS"} {
		t.Setenv(name, "x") // by which mkfs.xfs makes small ones
	}
	args := map[string][]string{"ext4": {"-F", "-E", "lazy_itable_init=0"}, "xfs": {"-f"}, "btrfs": {"-f", "-M", "-m", "single"}}[kind] // -M: in 40 MiB, too
	guest.Run(t, "mkfs."+kind, append(append([]string{"-q"}, args...), path)...)
}

// bare checks that nothing of a snapshot is left.
func bare(t *testing.T, folders ...string) {
	t.Helper()
	noDevices(t)
	records, _ := filepath.Glob(options.StateDir + "/snapshots/*")
	early, _ := filepath.Glob(snapshot.EarlyDir + "/*")
	records = append(records, early...)
	for _, at := range folders {
		files, _ := filepath.Glob(at + "/.tidemark-*")
		records = append(records, files...)
	}
	if len(records) > 0 {
		t.Errorf("left behind: %v", records)
	}
}

// noDevices checks that no device of a snapshot is left, and that all go on.
func noDevices(t *testing.T) {
	t.Helper()
	if left := guest.Run(t, "dmsetup", "info", "-c", "--noheadings", "-o", "name,suspended"); strings.Contains(left, "+") || strings.Contains(left, "Suspended") {
		t.Errorf("left behind:\n%s", left)
	}
}

// take takes a snapshot, and returns what each origin held at the instant, with zeros where its
// own store lies.
func take(t *testing.T, req snapshot.Request) (*snapshot.Snapshot, [][]byte) {
	t.Helper()
	held := make([][]byte, len(req.Devices))
	req.MaxFreeze = time.Minute
	req.Instant = func(context.Context) error {
		for i, d := range req.Devices {
			var err error
			if held[i], err = instant.ReadAll(d.Path + "+real"); err != nil {
				return err
			}
		}
		return nil
	}
	s, err := snapshot.Create(t.Context(), options, req)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range s.Volumes {
		for _, e := range v.Store.Extents {
			clear(held[i][e.Off:e.End()])
		}
	}
	t.Logf("frozen for %v", s.Frozen)
	return s, held
}

func destroy(t *testing.T, s *snapshot.Snapshot) {
	t.Helper()
	if err := s.Destroy(t.Context(), false); err != nil {
		t.Fatal(err)
	}
}

// create takes a snapshot by the command. Its limit is none of a guest that has to wait for others.
func create(t *testing.T, args ...string) {
	t.Helper()
	guest.Run(t, "tidemark", append([]string{"snapshot", "create", "--max-freeze", "1m"}, args...)...)
}

// settle waits until fio has written for a while: as much as an eighth of the device.
func settle(t *testing.T, name string) {
	t.Helper()
	path := "/sys/block/" + filepath.Base(must(t, os.Readlink, "/dev/mapper/"+name)) + "/stat"
	written := func() (n int) {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Sscan(strings.Fields(string(content))[6], &n)
		return n
	}
	for began := written(); written() < began+sectors/8; {
		unix.Sync()
	}
}

func must(t *testing.T, f func(string) (string, error), path string) string {
	t.Helper()
	to, err := f(path)
	if err != nil {
		// A node in place of a link: the number tells.
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("dm-%d", unix.Minor(st.Rdev))
	}
	return to
}

// The image of a busy filesystem is what the device held at the instant, whatever the filesystem,
// the place of the store, the size of chunks and the way of writing.
func TestImagesAreTheInstant(t *testing.T) {
	if err := os.MkdirAll("/stores", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, kind, store string
		chunk, size       int64
		churn             bool
	}{
		{"ext4 inside", "ext4", "", 0, 14 << 20, true},
		{"xfs inside", "xfs", "", 64 << 10, 14 << 20, false},
		{"ext4, a file", "ext4", "/stores/one", 4 << 10, 44 << 20, true},
		{"ext4, a disk", "ext4", "disk", 32 << 10, 14 << 20, false},
		{"xfs, a file", "xfs", "/stores/one", 1 << 20, 44 << 20, true},
		{"btrfs, a file", "btrfs", "/stores/one", 256 << 10, 44 << 20, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			name, at := origin(t, 0, c.kind)
			guest.Run(t, "mount", "-o", "remount,discard", at)
			if c.store == "disk" {
				c.store = guest.Disk(t, "store")
				guest.Run(t, "dd", "if=/dev/zero", "of="+c.store, "bs=1M", "count=1", "status=none", "conv=fsync")
			}
			calm := func() {}
			if c.churn {
				calm = instant.Churn(t, at)
			}
			defer calm()
			stop := instant.Load(t, at)
			defer stop()
			settle(t, name)
			s, held := take(t, snapshot.Request{Chunk: c.chunk, Devices: []snapshot.Device{{Path: "/dev/mapper/" + name, Store: c.store, Size: c.size}}})
			settle(t, name)
			image := s.Image(s.Volumes[0])
			instant.Compare(t, held[0], instant.MustRead(t, image))
			check(t, c.kind, image)
			settle(t, name)
			instant.Compare(t, held[0], instant.MustRead(t, image))
			st, err := s.Status()
			if err != nil || st.Lost != "" || st.Volumes[0].Used == 0 {
				t.Errorf("%+v, %v", st, err)
			}
			destroy(t, s)
			settle(t, name)
			stop()
			calm()
			bare(t, at)
			guest.Run(t, "fstrim", at) // discards pass again
		})
	}
}

// check has the filesystem on an image checked. XFS leaves its log to be replayed, so that there is
// nothing to be said of it without writing.
func check(t *testing.T, kind, image string) {
	t.Helper()
	switch kind {
	case "ext4":
		guest.Run(t, "e2fsck", "-fn", image)
	case "btrfs":
		guest.Run(t, "btrfs", "check", "--readonly", image)
	}
}

// Three filesystems are of one instant, and of two snapshots of one origin each is its own, in
// whatever order they end.
func TestSeveralDevicesAndSeveralSnapshots(t *testing.T) {
	var devices []snapshot.Device
	var folders []string
	for i, kind := range []string{"ext4", "xfs", "ext4"} {
		name, at := origin(t, i, kind)
		devices, folders = append(devices, snapshot.Device{Path: "/dev/mapper/" + name, Size: 8 << 20}), append(folders, at)
	}
	stop := instant.Count(t, folders...)
	defer stop()
	first, heldFirst := take(t, snapshot.Request{Devices: devices, Name: "first"})
	if out, err := exec.Command("tidemark", "snapshot", "create", devices[0].Path).CombinedOutput(); err == nil || !strings.Contains(string(out), "there is a snapshot of it already") {
		t.Errorf("a second store inside: %v: %s", err, out)
	}
	if err := os.MkdirAll("/stores", 0o700); err != nil {
		t.Fatal(err)
	}
	elsewhere := slices.Clone(devices)
	for i := range elsewhere {
		elsewhere[i].Store = fmt.Sprintf("/stores/second%d", i)
	}
	second, heldSecond := take(t, snapshot.Request{Devices: elsewhere, Name: "second"})
	for _, s := range []*snapshot.Snapshot{first, second} {
		var n [3]int
		for i, v := range s.Volumes {
			n[i] = counted(t, s.Image(v), i == 1)
		}
		if n[0] < n[1] || n[1] < n[2] || n[2] < n[0]-1 || n[2] == 0 {
			t.Errorf("%s: counters %v", s.Name, n)
		}
	}
	for i := range devices {
		instant.Compare(t, heldFirst[i], instant.MustRead(t, first.Image(first.Volumes[i])))
		got := instant.MustRead(t, second.Image(second.Volumes[i]))
		// The file of the first one's store is junk in it, as in the origin.
		for _, e := range first.Volumes[i].Store.Extents {
			clear(got[e.Off:e.End()])
			clear(heldSecond[i][e.Off:e.End()])
		}
		instant.Compare(t, heldSecond[i], got)
	}
	if err := first.Grow(t.Context(), first.Volumes[0], 12<<20); !errors.Is(err, snapshot.ErrStore) {
		t.Errorf("a store inside grows beside another snapshot: %v", err)
	}
	destroy(t, first)
	if out, err := exec.Command("tidemark", "snapshot", "create", "--name", "second", devices[0].Path).CombinedOutput(); err == nil || !strings.Contains(string(out), "there is a snapshot of that name") {
		t.Errorf("%v: %s", err, out)
	}
	destroy(t, second)
	stop()
	bare(t, folders...)
}

// counted is the number in the filesystem on an image.
func counted(t *testing.T, image string, xfs bool) (n int) {
	t.Helper()
	at, o := t.TempDir(), "ro,noload"
	if xfs {
		o = "ro,norecovery,nouuid"
	}
	guest.Run(t, "mount", "-o", o, image, at)
	content, err := os.ReadFile(filepath.Join(at, "count"))
	guest.Run(t, "umount", at)
	if err == nil {
		_, err = fmt.Sscanf(string(content), "%d", &n)
	}
	if err != nil {
		t.Error(err)
	}
	return n
}

// A command that is killed at any moment leaves an origin that works, and nothing that the next
// command does not remove; of persistent snapshots, too. A rollback that is killed goes on.
func TestKilledCommands(t *testing.T) {
	name, at := origin(t, 0, "ext4")
	stop := instant.Load(t, at)
	defer stop()
	killed(t, name, at, asked(t)/2, byCommand, byLaster)
	if out, err := byLaster(t.Context(), "/dev/mapper/"+name).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	guest.Run(t, "rm", "/dev/mapper/"+name+"+k+cow") // as if it was cut off between the kernel's part and the node
	guest.Run(t, "tidemark", "snapshot", "destroy", "k")
	bare(t, at)
	stop()
	guest.Run(t, "umount", at)
	killedRollbacks(t, "/dev/mapper/"+name)
	guest.Run(t, "e2fsck", "-fn", "/dev/mapper/"+name)
	guest.Run(t, "mount", "/dev/mapper/"+name, at)
}

// byCommand takes a snapshot "k" of a device.
func byCommand(ctx context.Context, dev string) *exec.Cmd {
	return exec.CommandContext(ctx, "tidemark", "snapshot", "create", "--max-freeze", "1m", "--name", "k", dev)
}

// laster is the part of this program that takes a persistent one: the command wants the files of a
// boot to be there.
var laster = reexec.Part{Name: "tidemark-test-lasting", Run: func(args []string) int {
	_, err := snapshot.Create(context.Background(), options, snapshot.Request{
		Name: "k", Persistent: true, MaxFreeze: time.Minute, Devices: []snapshot.Device{{Path: args[0]}},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}}

func byLaster(ctx context.Context, dev string) *exec.Cmd {
	part := reexec.Command(laster, dev)
	cmd := exec.CommandContext(ctx, part.Path)
	cmd.Args, cmd.Env = part.Args, part.Env
	return cmd
}

// killedRollbacks kills rollbacks of a device that nobody uses, at moments that are spread over their
// time. In the end it holds what it held.
func killedRollbacks(t *testing.T, dev string) {
	t.Helper()
	guest.Run(t, "dd", "if=/dev/zero", "of="+guest.Disk(t, "store"), "bs=1M", "count=1", "status=none", "conv=fsync")
	var took time.Duration
	const rounds = 4
	for i := range rounds {
		s, held := take(t, snapshot.Request{Name: "k", Persistent: true, Devices: []snapshot.Device{{Path: dev, Store: guest.Disk(t, "store")}}})
		guest.Run(t, "dd", "if=/dev/urandom", "of="+dev, "bs=64k", "count=30", "seek=100", "conv=notrunc", "oflag=direct", "status=none")
		limit, began := took*time.Duration(i)/rounds, time.Now()
		if i == 0 { // this one is not
			limit = time.Minute
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		_ = exec.CommandContext(ctx, "tidemark", "snapshot", "rollback", s.Name).Run()
		cancel()
		if i == 0 {
			took = time.Since(began)
		}
		guest.Run(t, "tidemark", "snapshot", "repair")
		if _, err := snapshot.Find(options, s.Name); err == nil {
			guest.Run(t, "tidemark", "snapshot", "rollback", s.Name)
		}
		instant.Compare(t, held[0], instant.MustRead(t, dev))
		bare(t)
	}
}

// follow has "events --follow" tell of a snapshot, and returns a function that waits for an event.
func follow(t *testing.T, name string, args ...string) (await func(event string) (total int64)) {
	t.Helper()
	events := exec.Command("tidemark", append([]string{"snapshot", "events", name, "--follow", "--json", "--interval", "100ms"}, args...)...)
	told, err := events.StdoutPipe()
	if err == nil {
		err = events.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(told)
	return func(event string) int64 {
		t.Helper()
		var e struct {
			Event string
			Total int64
		}
		for e.Event != event {
			if err := dec.Decode(&e); err != nil {
				t.Fatalf("no event %s: %v", event, err)
			}
		}
		if event == "destroyed" {
			if err := events.Wait(); err != nil {
				t.Error(err)
			}
		}
		return e.Total
	}
}

// A store that is full ends the snapshot, which is told, and the origin does not notice; one that
// is grown in time goes on.
func TestOverflowAndGrowth(t *testing.T) {
	name, at := origin(t, 0, "ext4")
	dev := "/dev/mapper/" + name
	create(t, "--name", "small", "--size", "4M", dev)
	await := follow(t, "small")
	write := func(file string, mib int) {
		t.Helper()
		guest.Run(t, "dd", "if=/dev/urandom", "of="+at+"/"+file, "bs=1M", fmt.Sprint("count=", mib), "oflag=direct", "status=none")
	}
	write("large", 16)
	await("lost")
	if out, err := exec.Command("tidemark", "snapshot", "status", "small").CombinedOutput(); err == nil || !strings.Contains(string(out), "was full") {
		t.Errorf("%v: %s", err, out)
	}
	if err := exec.Command("dd", "if="+dev+"+small", "of=/dev/null", "bs=1M", "iflag=direct", "status=none").Run(); err == nil {
		t.Error("a lost image can be read")
	}
	guest.Run(t, "tidemark", "snapshot", "destroy", "small")
	await("destroyed")
	bare(t, at)
	guest.Run(t, "e2fsck", "-n", dev)

	s, held := take(t, snapshot.Request{Devices: []snapshot.Device{{Path: dev, Store: "/stores-grows", Size: 6 << 20}}})
	await = follow(t, s.Name, "--low", "20", "--auto-grow", "4M", "--limit", "24M")
	for i := range 4 { // as much as is there then
		write(fmt.Sprint("more", i), 3)
		if i == 0 {
			await("grown")
		} else if i == 1 {
			if total := await("low-space"); total != 24<<20 {
				t.Errorf("a store of %d bytes is low", total)
			}
		}
	}
	instant.Compare(t, held[0], instant.MustRead(t, s.Image(s.Volumes[0])))
	if st, err := s.Status(); err != nil || st.Volumes[0].Total != 24<<20 {
		t.Errorf("%+v, %v", st, err)
	}
	destroy(t, s)
	await("destroyed")
	bare(t, at)
}

// An image that is in use is refused, and with --force ends under its reader; what is written to a
// writable one the origin does not see.
func TestImagesInUse(t *testing.T) {
	name, at := origin(t, 0, "ext4")
	guest.WriteFile(t, at+"/file", "before")
	create(t, "--name", "w", "--writable", "/dev/mapper/"+name)
	image := "/dev/mapper/" + name + "+w"
	there := t.TempDir()
	guest.Run(t, "mount", image, there)
	guest.WriteFile(t, there+"/file", "in the image")
	guest.WriteFile(t, at+"/file", "after")
	if out, err := exec.Command("tidemark", "snapshot", "destroy", "w").CombinedOutput(); err == nil || !strings.Contains(string(out), "in use") {
		t.Errorf("%v: %s", err, out)
	}
	guest.Run(t, "umount", there)
	for path, want := range map[string]string{image: "in the image", "/dev/mapper/" + name: "after"} {
		if path == image {
			guest.Run(t, "mount", path, there)
			got, err := os.ReadFile(there + "/file")
			guest.Run(t, "umount", there)
			if err != nil || string(got) != want {
				t.Errorf("%s: %q, %v", path, got, err)
			}
		} else if got, err := os.ReadFile(at + "/file"); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	reader, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	guest.Run(t, "tidemark", "snapshot", "destroy", "--force", "w")
	if _, err := unix.Pread(int(reader.Fd()), make([]byte, 4096), bytes/2); !errors.Is(err, unix.EIO) {
		t.Errorf("an image that was taken away: %v", err)
	}
	reader.Close()
	for slices.Contains(strings.Fields(guest.Run(t, "dmsetup", "ls")), name+"+w") {
	}
	guest.WriteFile(t, at+"/more", "it goes on")
	bare(t, at)
}

// What cannot be is refused before anything is made; what a reboot leaves is removed.
func TestRefusalsAndReboots(t *testing.T) {
	other, there := origin(t, 1, "ext4")
	name, at := origin(t, 0, "ext4")
	dev := "/dev/mapper/" + name
	guest.Run(t, "dd", "if=/dev/zero", "of="+guest.Disk(t, "store"), "bs=1M", "count=1", "status=none", "conv=fsync")
	guest.Run(t, "mkfs.ext4", "-q", "-F", guest.Disk(t, "store"))
	guest.Run(t, "dmsetup", "create", name+"+theirs", "--table", "0 8 zero")
	for _, c := range []struct {
		want string
		args []string
	}{
		{"not a device of device-mapper", []string{guest.Disk(t, "data")}},
		{"it is given twice", []string{dev, dev}},
		{"too little room", []string{"--size", "1G", dev}},
		{"holds ext", []string{"--store", guest.Disk(t, "store"), dev}},
		{"of which a snapshot is taken too", []string{"--store", dev + "=" + there + "/here", dev, "/dev/mapper/" + other}},
		{"the store cannot be there", []string{"--store", dev, dev}},
		{"there is a device", []string{"--name", "theirs", dev}},
		{"there is a file /bin/tidemark", []string{"--store", "/bin/tidemark", dev}},
		{"power of two", []string{"--chunk", "12K", dev}},
		{"is no name", []string{"--name", "../x", dev}},
	} {
		out, err := exec.Command("tidemark", append([]string{"snapshot", "create"}, c.args...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%v: %v: %s", c.args, err, out)
		}
	}
	guest.Run(t, "dmsetup", "remove", "--retry", name+"+theirs")
	bare(t, at)
	create(t, "--name", "r", dev)
	for _, line := range []string{"remove " + name + "+r", "remove " + name + "+r+snap"} {
		guest.Run(t, "dmsetup", append(strings.Fields(line), "--retry")...)
	}
	guest.Run(t, "dmsetup", "load", name, "--table", fmt.Sprintf("0 %d linear %s 0", sectors, guest.Disk(t, "data")))
	guest.Run(t, "dmsetup", "resume", name)
	guest.Run(t, "dmsetup", "remove", "--retry", name+"+r+cow")
	guest.Run(t, "dmsetup", "remove", "--retry", name+"+real")
	record := options.StateDir + "/snapshots/r.json"
	content, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	s, err := snapshot.Find(options, "r")
	if err != nil {
		t.Fatal(err)
	}
	guest.WriteFile(t, record, strings.Replace(string(content), s.Boot, "00000000-0000-0000-0000-000000000000", 1))
	if out := guest.Run(t, "tidemark", "snapshot", "repair"); !strings.Contains(out, "the machine was booted") {
		t.Error(out)
	}
	bare(t, at)
}

// Mirrors by the view "dm" of a device that is written to all the time are incremental over the
// swaps of its table, also when a run is killed; what is written meanwhile is in the next.
func TestMirrorsByTheViewDM(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			name, at := origin(t, 0, kind)
			dev, image := "/dev/mapper/"+name, filepath.Join(t.TempDir(), "image")
			mirror := func(mode string) {
				t.Helper()
				out := guest.Run(t, "tidemark", "mirror", "--max-freeze", "1m", "--json", "--view", "dm", dev, image)
				if !strings.Contains(out, fmt.Sprintf("%q:%q", "mode", mode)) || !strings.Contains(out, `"view":"dm"`) {
					t.Fatalf("want mode %s: %s", mode, out)
				}
				if kind == "ext4" {
					guest.Run(t, "e2fsck", "-fn", image)
				}
				bare(t, at)
			}
			stop := instant.Load(t, at)
			defer stop()
			began := time.Now()
			mirror("full")
			took := time.Since(began)
			settle(t, name)
			mirror("incremental")
			for i := range 6 {
				ctx, cancel := context.WithTimeout(t.Context(), took*time.Duration(i+1)/7)
				_ = exec.CommandContext(ctx, "tidemark", "mirror", "--view", "dm", dev, image).Run() // killed, or not
				cancel()
			}
			guest.Run(t, "tidemark", "snapshot", "repair")
			settle(t, name)
			mirror("incremental")
			stop()
			guest.Run(t, "umount", at)
			if out := guest.Run(t, "tidemark", "mirror", "--json", dev, image); !strings.Contains(out, `"mode":"incremental"`) {
				t.Errorf("the mark did not outlive the snapshots: %s", out)
			}
			instant.Compare(t, instant.MustRead(t, dev), instant.MustRead(t, image))
			guest.Run(t, "mount", dev, at)
			if kind == "ext4" {
				guest.Run(t, "tidemark", "track", "stop", dev)
			}
		})
	}
}

// A filesystem that would have to be frozen for longer than is allowed is read from a snapshot, where
// there can be one.
func TestAFreezeGivesWayToASnapshot(t *testing.T) {
	const wide = 1 << 30 / 512 // that takes ten seconds at the speed that is presumed
	dev := guest.Mapper(t, "wide", fmt.Sprintf("0 %d linear %s 0\n%d %d zero", sectors, guest.Disk(t, "data"), sectors, wide-sectors))
	at, image := t.TempDir(), filepath.Join(t.TempDir(), "image")
	guest.Run(t, "mkfs.ext4", "-q", "-F", dev, "40M")
	guest.Run(t, "mount", dev, at)
	t.Cleanup(func() { guest.Run(t, "umount", at) })
	out := guest.Run(t, "tidemark", "mirror", "--tracker", "scan", "--max-freeze", "5s", "--json", dev, image)
	if !strings.Contains(out, `"view":"dm"`) || !strings.Contains(out, "view: dm in place of a freeze") {
		t.Error(out)
	}
	guest.Run(t, "e2fsck", "-fn", image)
	bare(t, at)
	if out, err := exec.Command("tidemark", "mirror", "--tracker", "scan", "--view", "freeze", "--max-freeze", "5s", dev, image).CombinedOutput(); err == nil || !strings.Contains(string(out), "--view dm") {
		t.Errorf("%v: %s", err, out)
	}
}

// A logical volume is mirrored by the view "dm" while LVM is kept from changing its group; and marks
// outlive LVM's own snapshots.
func TestMirrorsOfALogicalVolume(t *testing.T) {
	guest.Run(t, "dd", "if=/dev/zero", "of="+guest.Disk(t, "data"), "bs=1M", "count=2", "status=none", "conv=fsync")
	guest.Run(t, "vgcreate", "--quiet", "vg", guest.Disk(t, "data"))
	t.Cleanup(func() { guest.Run(t, "vgremove", "--quiet", "--force", "--force", "--yes", "vg") })
	guest.Run(t, "lvcreate", "--quiet", "--size", "40M", "--name", "lv", "vg")
	dev, image, at := "/dev/vg/lv", filepath.Join(t.TempDir(), "image"), t.TempDir()
	mkfs(t, "ext4", dev)
	guest.Run(t, "mount", dev, at)
	t.Cleanup(func() { _ = exec.Command("umount", at).Run() }) // where the test did not
	stop := instant.Load(t, at)
	defer stop()
	mirror := func(mode string, more ...string) {
		t.Helper()
		out := guest.Run(t, "tidemark", append(append([]string{"mirror", "--max-freeze", "1m", "--json"}, more...), dev, image)...)
		if !strings.Contains(out, fmt.Sprintf("%q:%q", "mode", mode)) {
			t.Fatalf("want mode %s: %s", mode, out)
		}
		guest.Run(t, "e2fsck", "-fn", image)
		bare(t, at)
	}
	mirror("full", "--view", "dm")
	// While the view is open, LVM shows the group, and does not change it.
	pv, now := guest.Disk(t, "data"), " --config global/wait_for_locks=0 "
	guest.Run(t, "tidemark", "mirror", "--max-freeze", "1m", "--view", "dm", "--post-hook", "lvs vg && ! lvcreate"+now+"--size 4M --name other vg && "+
		"! lvcreate"+now+"--snapshot --size 4M --name other vg/lv && ! lvremove"+now+"--yes vg/lv && ! pvmove"+now+pv, dev, image)
	mirror("incremental", "--view", "dm")
	guest.Run(t, "lvcreate", "--quiet", "--snapshot", "--size", "20M", "--name", "theirs", dev)
	settle(t, "vg-lv")
	mirror("incremental")
	guest.Run(t, "lvremove", "--quiet", "--yes", "vg/theirs")
	settle(t, "vg-lv")
	mirror("incremental")
	guest.Run(t, "pvmove", "--alloc", "anywhere", "--interval", "1", pv+":0-9", pv+":10-30")
	mirror("scan", "--view", "dm")
	settle(t, "vg-lv")
	stop()
	guest.Run(t, "umount", at)
	mirror("incremental")
	instant.Compare(t, instant.MustRead(t, dev), instant.MustRead(t, image))
	if out, err := exec.Command("tidemark", "snapshot", "create", dev).CombinedOutput(); err == nil || !strings.Contains(string(out), "--store lvm") {
		t.Errorf("%v: %s", err, out)
	}
	inTheGroup(t, dev)
}

// inTheGroup has LVM make snapshots of a volume that is not in use.
func inTheGroup(t *testing.T, dev string) {
	t.Helper()
	held := instant.MustRead(t, dev)
	create := []string{"snapshot", "create", "--store", "lvm", "--name", "ours", "--size", "5M", dev}
	image := guest.Run(t, "tidemark", create...)
	guest.Run(t, "dd", "if=/dev/urandom", "of="+dev, "bs=64k", "count=40", "seek=40", "oflag=direct", "conv=notrunc", "status=none")
	guest.Run(t, "tidemark", "snapshot", "grow", "ours", "--size", "12M")
	guest.Run(t, "dd", "if=/dev/urandom", "of="+dev, "bs=64k", "count=100", "seek=80", "oflag=direct", "conv=notrunc", "status=none")
	instant.Compare(t, held, instant.MustRead(t, image))
	if out := guest.Run(t, "tidemark", "snapshot", "status", "ours", "--json"); !strings.Contains(out, `"kind":"lvm"`) || !strings.Contains(out, `"total":12582912`) {
		t.Error(out)
	}
	if out := guest.Run(t, "lvs", "--noheadings", "-o", "lv_size,origin,lv_tags", "--units", "m", "vg/ours"); !strings.Contains(out, "tidemark.snapshot") || !strings.Contains(out, "12.00m lv") {
		t.Error(out)
	}
	refused(t, "it is given twice", "--store", "lvm", dev, dev)
	guest.Run(t, "tidemark", "snapshot", "destroy", "ours")
	bare(t)
	guest.Run(t, "tidemark", create...)
	guest.Run(t, "lvremove", "--yes", "vg/ours") // by its user
	guest.Run(t, "tidemark", "snapshot", "destroy", "ours")
	bare(t)
	if out := guest.Run(t, "lvs", "--noheadings", "-o", "lv_name", "vg"); out != "lv" {
		t.Errorf("volumes %q", out)
	}
}

// A snapshot that was merged into a device between two runs is not forgotten, though all tables are
// again what they were.
func TestAMergeLosesTheMarks(t *testing.T) {
	guest.Run(t, "dd", "if=/dev/zero", "of="+guest.Disk(t, "data"), "bs=1M", "count=2", "status=none", "conv=fsync")
	guest.Run(t, "vgcreate", "--quiet", "vg", guest.Disk(t, "data"))
	t.Cleanup(func() { guest.Run(t, "vgremove", "--quiet", "--force", "--force", "--yes", "vg") })
	guest.Run(t, "lvcreate", "--quiet", "--size", "16M", "--name", "lv", "vg")
	dev, image := "/dev/vg/lv", filepath.Join(t.TempDir(), "image")
	mirror := func(mode string) {
		t.Helper()
		out := guest.Run(t, "tidemark", "mirror", "--json", dev, image)
		if !strings.Contains(out, fmt.Sprintf("%q:%q", "mode", mode)) {
			t.Errorf("want mode %s: %s", mode, out)
		}
		instant.Compare(t, instant.MustRead(t, dev), instant.MustRead(t, image))
	}
	mirror("full")
	if out := guest.Run(t, "tidemark", "track", "status", dev); strings.Contains(out, "not seen") {
		t.Error(out)
	}
	write := func() {
		guest.Run(t, "dd", "if=/dev/urandom", "of="+dev, "bs=64k", "count=8", "seek=40", "oflag=direct", "conv=notrunc", "status=none")
	}
	for range 2 {
		before := guest.Run(t, "dmsetup", "table", "vg-lv")
		guest.Run(t, "lvcreate", "--quiet", "--snapshot", "--size", "8M", "--name", "theirs", dev)
		write()
		mirror("incremental")
		mark := strings.Fields(guest.Run(t, "tidemark", "track", "start", dev))[1]
		guest.Run(t, "lvconvert", "--quiet", "--merge", "vg/theirs")
		for guest.Run(t, "dmsetup", "table", "vg-lv") != before {
			guest.Run(t, "lvpoll", "--polloperation", "merge", "--interval", "1", "vg/lv")
		}
		if out, err := exec.Command("tidemark", "track", "changes", dev, "--since", mark).CombinedOutput(); err == nil || !strings.Contains(string(out), "a snapshot was merged into the device") {
			t.Errorf("%v: %s", err, out)
		}
		mirror("scan")
		write()
		mirror("incremental")
	}
	guest.Run(t, "tidemark", "track", "stop", dev)
	guest.Run(t, "lvchange", "--quiet", "--activate", "n", "vg/lv")
	if refs := guest.Run(t, "sh", "-c", "ls /sys/fs/bpf/tidemark/*/ 2>/dev/null || true"); strings.Contains(refs, "swap_table") {
		t.Errorf("left behind: %s", refs)
	}
}
