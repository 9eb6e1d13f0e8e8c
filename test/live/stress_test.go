package live_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tidemark/block"
	"tidemark/format/state"
	"tidemark/track/bpf"
	"tidemark/transfer"
	"tidemark/transfer/mirror"
	"tidemark/transfer/transaction"
	"tidemark/view"
)

const sourceSize = 512 << 20

// witness is a view that, just before it is released, reads the whole source once
// more: what it finds is what the copy has to be.
type witness struct {
	view.Provider
	path string
	saw  fingerprint
}

type witnessed struct {
	view.View
	w *witness
}

func (w *witness) Take(ctx context.Context, instant func(context.Context) error) (view.View, error) {
	v, err := w.Provider.Take(ctx, instant)
	if err != nil {
		return nil, err
	}
	return &witnessed{View: v, w: w}, nil
}

func (v *witnessed) Close() (view.Report, error) {
	saw, err := readAll(v.w.path)
	v.w.saw = saw // of the last view that was taken, which is the one copied from
	report, closeErr := v.View.Close()
	return report, errors.Join(err, closeErr)
}

// fingerprint is a hash of each piece of a device.
type fingerprint [][sha256.Size]byte

const piece = 64 << 10

func readAll(path string) (fingerprint, error) {
	d, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var f fingerprint
	buf := block.AlignedBuffer(16 * piece)
	for off := int64(0); off < d.Size(); off += int64(len(buf)) {
		n := min(int64(len(buf)), d.Size()-off)
		if _, err := d.ReadAt(buf[:n], off); err != nil && err != io.EOF {
			return nil, err
		}
		for at := int64(0); at < n; at += piece {
			f = append(f, sha256.Sum256(buf[at:min(at+piece, n)]))
		}
	}
	return f, nil
}

func (f fingerprint) compare(t *testing.T, copied fingerprint) {
	t.Helper()
	if len(f) == 0 || len(f) != len(copied) {
		t.Fatalf("the source has %d pieces, the copy %d", len(f), len(copied))
	}
	wrong := 0
	for i := range f {
		if f[i] != copied[i] {
			if wrong++; wrong <= 5 {
				t.Errorf("the copy differs in the 64 KiB at offset %d", i*piece)
			}
		}
	}
	if wrong > 0 {
		t.Fatalf("%d of %d pieces differ", wrong, len(f))
	}
}

// rig is one source and its mirror, put together by hand so that the view can
// be witnessed.
type rig struct {
	source, image, folder string
	track                 bpf.Options
}

// run makes one run, proves the copy, and returns the report.
func (r *rig) run(t *testing.T) transfer.Report {
	t.Helper()
	dir, err := transaction.OpenDir(r.folder, true)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	f, err := os.OpenFile(r.image, os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	disk, err := block.Open(r.image, block.Options{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	store, err := mirror.Open(transaction.Disk{Device: disk}, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	saw, rep := r.witnessed(t, &mirror.Sink{Store: store, Name: r.image}, func(size, granularity int64) {
		if store.Exists() {
			return
		}
		if err := store.Init(size, granularity, state.Source{Path: r.source}, false); err != nil {
			t.Fatal(err)
		}
	})
	copied, err := readAll(r.image)
	if err != nil {
		t.Fatal(err)
	}
	saw.compare(t, copied)
	bad, err := store.Check(t.Context(), nil)
	if err != nil || !bad.Empty() {
		t.Fatalf("checksums differ at %v: %v", bad.Extents(), err)
	}
	return rep
}

// witnessed makes one run into a sink, and returns what the source was at its instant. begin is
// called before it, with what the sink may have to know.
func (r *rig) witnessed(t *testing.T, sink transfer.Sink, begin func(size, granularity int64)) (fingerprint, transfer.Report) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	source, err := block.Open(r.source, block.Options{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	opts := r.track
	sources := []*block.Device{source}
	opts.Drain = func(ctx context.Context) error {
		v, err := view.Freeze(view.Options{Sources: sources}).Take(ctx, func(context.Context) error { return nil })
		if err != nil {
			return err
		}
		_, err = v.Close()
		return err
	}
	live, err := bpf.Open(ctx, source, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	begin(source.Size(), live.Granularity())
	w := &witness{path: r.source, Provider: view.Freeze(view.Options{Sources: sources, MaxFreeze: time.Minute})}
	reports, err := transfer.Run(ctx, []*transfer.Pair{{
		Name: r.source, Target: r.image, Source: source, Tracker: live, Owner: "stress", Sink: sink,
	}}, transfer.Options{View: w, MaxFreeze: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return w.saw, reports[0]
}

// tracking returns options of a tracking that nothing else on the machine shares.
func tracking(t *testing.T, dir string) bpf.Options {
	t.Helper()
	bpffs := filepath.Join(dir, "bpf")
	if err := os.MkdirAll(bpffs, 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, "mount", "-t", "bpf", "bpf", bpffs)
	t.Cleanup(func() { must(t, "umount", bpffs) })
	return bpf.Options{RunDir: filepath.Join(dir, "run"), BPFFS: bpffs}
}

func TestMirrorsOfBusyFilesystemsEqualOneInstant(t *testing.T) {
	for _, tt := range []struct {
		name, fs string
		disk     func(testing.TB, string, int64) string
		runs     int // after the first
	}{
		{"ext4 on loop", "ext4", loop, *runs},
		{"xfs on loop", "xfs", loop, *runs},
		{"btrfs on loop", "btrfs", loop, *runs},
		{"ext4 on zram", "ext4", zram, *runs / 2},
		{"ext4 on a partition", "ext4", partitioned, *runs / 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := scratch(t)
			dev := tt.disk(t, dir, sourceSize)
			r := &rig{
				source: dev, image: filepath.Join(dir, "mirror.img"), folder: filepath.Join(dir, "mirror.tidemark"),
				track: tracking(t, dir),
			}
			t.Cleanup(func() {
				if err := bpf.Stop(context.WithoutCancel(t.Context()), dev, r.track); err != nil {
					t.Error(err)
				}
			})
			at := mount(t, tt.fs, dev, dir)
			load(t, at)
			for i := range 1 + tt.runs {
				rep := r.run(t)
				want := "incremental"
				if i == 0 {
					want = "full"
				}
				if rep.Mode != want {
					t.Fatalf("run %d: mode %s (%s), want %s", i, rep.Mode, rep.MarkLost, want)
				}
				t.Logf("run %d: %s, %d passes, read %d KiB, wrote %d KiB, the witness included frozen for %v",
					i, rep.Mode, rep.Passes, rep.Read>>10, rep.Written>>10, rep.Frozen.Round(time.Millisecond))
				checkFilesystem(t, tt.fs, r.image, dir)
			}
		})
	}
}
