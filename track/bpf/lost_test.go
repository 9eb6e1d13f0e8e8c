package bpf_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/extent"
	"tidemark/track"
	"tidemark/track/bpf"
)

func wantLost(t *testing.T, err error, words string) {
	t.Helper()
	if !errors.Is(err, track.ErrMarkLost) || !strings.Contains(err.Error(), words) {
		t.Fatalf("error %v; want a lost mark with the words %q", err, words)
	}
}

// tracked returns a tracked disk and a mark with one change after it.
func tracked(t *testing.T) (opts bpf.Options, dev, file string, l *bpf.Tracker, m track.Mark) {
	t.Helper()
	opts = places(t)
	file = sparse(t, 16<<20)
	dev = loop(t, file)
	l = open(t, dev, opts)
	m = cut(t, l)
	write(t, dev, 0, 4096, 1)
	if err := l.Keep(t.Context(), "test", m, false); err != nil {
		t.Fatal(err)
	}
	return opts, dev, file, l, m
}

// wantRestart checks that tracking starts anew, that the old mark is lost with
// the words, and that the new tracking works.
func wantRestart(t *testing.T, dev string, opts bpf.Options, old track.Mark, words string) {
	t.Helper()
	l := open(t, dev, opts)
	_, err := l.Changes(t.Context(), old, "")
	wantLost(t, err, words)
	wantLost(t, l.Vouch(t.Context(), old), words)
	m := cut(t, l)
	write(t, dev, 8192, 4096, 7)
	wantChanges(t, l, m, "", extent.Extent{Off: 8192, Len: 4096})
}

func TestResizeLosesTheMarks(t *testing.T) {
	opts, dev, file, l, m := tracked(t)
	if err := os.Truncate(file, 32<<20); err != nil {
		t.Fatal(err)
	}
	run(t, "losetup", "-c", dev)
	_, err := l.Changes(t.Context(), m, "")
	wantLost(t, err, "resized from 16777216 to 33554432")
	wantLost(t, l.Vouch(t.Context(), m), "resized from 16777216 to 33554432")
	_, err = l.Cut(t.Context())
	wantLost(t, err, "resized from 16777216 to 33554432")
	wantRestart(t, dev, opts, m, "resized from 16777216 to 33554432")
}

func TestResizeThereAndBackLosesTheMarksWhenThereWasIO(t *testing.T) {
	opts, dev, file, l, m := tracked(t)
	for _, size := range []int64{32 << 20, 16 << 20} {
		if err := os.Truncate(file, size); err != nil {
			t.Fatal(err)
		}
		run(t, "losetup", "-c", dev)
		write(t, dev, 4096, 4096, 2)
	}
	_, err := l.Changes(t.Context(), m, "")
	wantLost(t, err, "resized")
	wantLost(t, l.Vouch(t.Context(), m), "resized")
	wantRestart(t, dev, opts, m, "resized")
}

func TestReplugLosesTheMarks(t *testing.T) {
	opts, dev, file, l, m := tracked(t)
	run(t, "losetup", "-d", dev)
	run(t, "losetup", "--direct-io=on", dev, file)
	write(t, dev, 4096, 4096, 2)
	_, err := l.Changes(t.Context(), m, "")
	wantLost(t, err, "re-plugged (diskseq")
	wantLost(t, l.Vouch(t.Context(), m), "re-plugged (diskseq")
	_, err = l.Cut(t.Context())
	wantLost(t, err, "re-plugged (diskseq")
	wantRestart(t, dev, opts, m, "re-plugged (diskseq")
}

func TestDetachedProgramLosesTheMarks(t *testing.T) {
	const why = "the tracking programs were damaged, detached, or installed by another version"
	for _, name := range []string{"issue_request", "complete_request"} {
		t.Run(name, func(t *testing.T) {
			opts, dev, _, l, m := tracked(t)
			if err := os.Remove(filepath.Join(l.Pins(), "link_"+name)); err != nil {
				t.Fatal(err)
			}
			_, err := l.Changes(t.Context(), m, "")
			wantLost(t, err, why)
			wantLost(t, l.Vouch(t.Context(), m), why)
			_, err = l.Cut(t.Context())
			wantLost(t, err, why)
			wantRestart(t, dev, opts, m, why)
		})
	}
}

func TestEmptiedBpffsLosesTheMarks(t *testing.T) {
	opts, dev, _, l, m := tracked(t)
	if err := os.RemoveAll(filepath.Dir(l.Pins())); err != nil {
		t.Fatal(err)
	}
	_, err := l.Changes(t.Context(), m, "")
	wantLost(t, err, "gone")
	wantLost(t, l.Vouch(t.Context(), m), "gone")
	wantRestart(t, dev, opts, m, "gone")
}

func TestUnmountedBpffsLosesTheMarks(t *testing.T) {
	opts, dev, _, l, m := tracked(t)
	if err := unix.Unmount(opts.BPFFS, 0); err != nil {
		t.Fatal(err)
	}
	_, err := l.Changes(t.Context(), m, "")
	wantLost(t, err, "gone")
	wantLost(t, l.Vouch(t.Context(), m), "gone")
	wantRestart(t, dev, opts, m, "gone") // mounts it again
}

func TestStoppedTrackingLosesTheMarks(t *testing.T) {
	opts, dev, _, l, m := tracked(t)
	if err := bpf.Stop(t.Context(), dev, opts); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(l.Pins()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the last disk was stopped, but the programs are still pinned: %v", err)
	}
	_, err := l.Changes(t.Context(), m, "")
	wantLost(t, err, "stopped")
	wantLost(t, l.Vouch(t.Context(), m), "stopped")
	if err := bpf.Stop(t.Context(), dev, opts); !errors.Is(err, bpf.ErrNotTracked) {
		t.Errorf("stopping again: %v", err)
	}
	wantRestart(t, dev, opts, m, "not tracked before")
}

func TestDamagedStateLosesTheMarks(t *testing.T) {
	damage := map[string]func([]byte) []byte{
		"emptied": func(b []byte) []byte { return nil },
		"cut":     func(b []byte) []byte { return b[:len(b)/2] },
		"garbage": func(b []byte) []byte { return []byte(strings.Repeat("\x00", len(b))) },
		"huge":    func(b []byte) []byte { return make([]byte, 2<<20) },
		"other":   func(b []byte) []byte { return []byte(`{"version":1,"what":3}`) },
	}
	for _, name := range []string{"record.json", "leases.json"} {
		for how, spoil := range damage {
			t.Run(name+"/"+how, func(t *testing.T) {
				opts, dev, _, l, m := tracked(t)
				path := filepath.Join(l.Dir(), name)
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, spoil(b), 0o600); err != nil {
					t.Fatal(err)
				}
				if name == "leases.json" {
					if err := l.Keep(t.Context(), "x", m, false); err == nil {
						t.Error("Keep wrote over a damaged list")
					}
				}
				wantRestart(t, dev, opts, m, "damaged")
			})
		}
	}
}

func TestDamagedHistoryLosesTheMarksThatNeedIt(t *testing.T) {
	_, dev, _, l, m := tracked(t)
	m2 := cut(t, l)
	write(t, dev, 8192, 4096, 3)
	if err := l.Persist(t.Context()); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(l.Dir(), "2-*.changes"))
	if err != nil || len(files) != 1 {
		t.Fatal("files of the history:", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = l.Changes(t.Context(), m, "")
	wantLost(t, err, "unreadable")
	wantLost(t, l.Vouch(t.Context(), m), "unreadable")
	wantChanges(t, l, m2, "", extent.Extent{Off: 8192, Len: 4096})
}

func TestRecordOfAnotherBootLosesTheMarks(t *testing.T) {
	opts, dev, _, l, m := tracked(t)
	path := filepath.Join(l.Dir(), "record.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	i := strings.Index(string(b), `"boot": "`) + len(`"boot": "`)
	b[i] = '0' + (b[i]-'0'+1)%10
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	wantRestart(t, dev, opts, m, "rebooted")
}

func TestMarksOfOthersAreRefused(t *testing.T) {
	opts := places(t)
	disk, p1, p2 := partitioned(t, 24<<20)
	l, l1, l2 := open(t, disk, opts), open(t, p1, opts), open(t, p2, opts)
	m1 := cut(t, l1)
	for _, other := range []*bpf.Tracker{l, l2} {
		_, err := other.Changes(t.Context(), m1, "")
		wantLost(t, err, "it is a mark of bytes 1048576+8388608")
		wantLost(t, other.Vouch(t.Context(), m1), "it is a mark of bytes 1048576+8388608")
	}
	_, err := l.Changes(t.Context(), "scan", "")
	wantLost(t, err, "without tracking")
	wantLost(t, l.Vouch(t.Context(), "scan"), "without tracking")
	_, err = l.Changes(t.Context(), "era:0123456789abcdef:17", "")
	wantLost(t, err, "another tracker")
	wantLost(t, l.Vouch(t.Context(), "era:0123456789abcdef:17"), "another tracker")
	_, err = l.Changes(t.Context(), "bpf:0123456789abcdef:1", "")
	wantLost(t, err, "another tracking")
	wantLost(t, l.Vouch(t.Context(), "bpf:0123456789abcdef:1"), "another tracking")
	for _, bad := range []track.Mark{"x", "bpf", "bpf:0123456789abcdef:0", "bpf:0123456789ABCDEF:1", "bpf:0123456789abcdef:01", "bpf:0123456789abcdef:1:5+0"} {
		if _, err := l.Changes(t.Context(), bad, ""); !errors.Is(err, track.ErrBadMark) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestDiskInUseByAFilesystemCanBeOpenedOften(t *testing.T) {
	opts := places(t)
	dev := loopDisk(t, 16<<20)
	a, b := open(t, dev, opts), open(t, dev, opts)
	ma, mb := cut(t, a), cut(t, b)
	write(t, dev, 0, 4096, 1)
	wantChanges(t, a, ma, "", extent.Extent{Len: 4096})
	wantChanges(t, b, mb, "", extent.Extent{Len: 4096})
	wrong := opts
	wrong.BlockSize = 8192
	if _, err := opened(context.Background(), dev, wrong); err == nil {
		t.Error("another block size than that in use was accepted")
	}
}

func TestDiskThatIsGoneIsListedAndCanBeStopped(t *testing.T) {
	opts, dev, file, _, _ := tracked(t)
	again := loop(t, sparse(t, 16<<20)) // tracked as well, and stays
	l2 := open(t, again, opts)
	m2 := cut(t, l2)
	run(t, "losetup", "-d", dev)
	gone := "/dev/no/such"
	list, err := bpf.List(t.Context(), opts)
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	for _, st := range list {
		if lost := st.Lost != ""; lost != (st.Disk == filepath.Base(dev)) {
			t.Errorf("%s: lost %q", st.Disk, st.Lost)
		}
	}
	if err := bpf.Stop(t.Context(), gone, opts); !errors.Is(err, bpf.ErrNotTracked) {
		t.Error(err)
	}
	if err := bpf.Stop(t.Context(), dev, opts); err != nil {
		t.Error(err)
	}
	write(t, again, 0, 4096, 1)
	wantChanges(t, l2, m2, "", extent.Extent{Len: 4096})
	if list, err = bpf.List(t.Context(), opts); err != nil || len(list) != 1 || list[0].Lost != "" || list[0].Changed != 4096 {
		t.Error(list, err)
	}
	run(t, "losetup", dev, file) // the cleanup detaches it
}

func TestDiskThatVanishedCanBeStopped(t *testing.T) {
	opts := places(t)
	dev, remove := addZram(t, 16<<20)
	l := open(t, dev, opts)
	m := cut(t, l)
	remove()
	if list, err := bpf.List(t.Context(), opts); err != nil || len(list) != 1 || list[0].Lost != "the device is gone" {
		t.Error(list, err)
	}
	if _, err := l.Changes(t.Context(), m, ""); err == nil {
		t.Error("changes of a disk that is gone")
	}
	if err := bpf.Stop(t.Context(), dev, opts); err != nil {
		t.Error(err)
	}
	if list, err := bpf.List(t.Context(), opts); err != nil || len(list) != 0 {
		t.Error(list, err)
	}
}
