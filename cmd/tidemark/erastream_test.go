package main

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"tidemark/extent"
	"tidemark/transfer/export"
)

const streamCases = "../../format/erastream/testdata"

// originalSource is what the recorded stream was read from.
func originalSource() []byte {
	b := make([]byte, 38400)
	for i := range b {
		b[i] = byte((i>>8)*31 + i&3)
	}
	return b
}

// TestTheNamesDoWhatTheOriginalsDid compares with what the C tools made of the same
// input: a stream, and the image that it becomes. original.stream.zst is what era_copy
// of github.com/vitalif/era_copy wrote, built by its own Makefile:
//
//	era_copy 8 SOURCE <original.xml | zstd >original.stream.zst
//
// where SOURCE has the bytes of originalSource.
func TestTheNamesDoWhatTheOriginalsDid(t *testing.T) {
	dir := t.TempDir()
	packed, err := os.ReadFile(filepath.Join(streamCases, "original.stream.zst"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := unzstd(packed)
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadFile(filepath.Join(streamCases, "original.xml"))
	if err != nil {
		t.Fatal(err)
	}
	src := filepath.Join(dir, "src")
	if err := os.WriteFile(src, originalSource(), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if err := asEraCopy(t.Context(), []string{"8", src}, stdio{bytes.NewReader(list), &out, &errs}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) || errs.Len() > 0 {
		t.Errorf("era_copy: %d bytes, the original wrote %d; said %q", out.Len(), len(want), errs.String())
	}
	t.Setenv(envStateDir, dir)
	image := filepath.Join(dir, "image")
	for range 2 { // new, then old
		if err := asEraApply(t.Context(), []string{image}, stdio{bytes.NewReader(want), &out, &errs}); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		wantImage := make([]byte, 38400)
		for _, e := range [][2]int{{4096, 8192}, {12288, 20480}, {36864, 38400}} {
			copy(wantImage[e[0]:e[1]], originalSource()[e[0]:e[1]])
		}
		if !bytes.Equal(got, wantImage) {
			t.Error("era_apply made another image")
		}
	}
}

// program starts this program by another name.
func program(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Args[0] = name
	return cmd
}

// TestAKilledApplyLeavesTheOldImageOrTheNew kills the program at random moments of
// all stages, and lets the next one finish.
func TestAKilledApplyLeavesTheOldImageOrTheNew(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	old, fresh, stream := changesOf(t, rng, 24<<20)
	outcomes := map[string]int{}
	for round := range 30 {
		if err := os.WriteFile(image, old, 0o600); err != nil {
			t.Fatal(err)
		}
		in, feed, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := program(t, "era_apply", image)
		cmd.Stdin = in
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		in.Close()
		if round%2 == 0 {
			_, _ = feed.Write(stream[:rng.IntN(len(stream))]) // killed while it waits for more
			kill(t, cmd)
			feed.Close()
		} else {
			go func() {
				_, _ = feed.Write(stream)
				feed.Close()
			}()
			waitFor(filepath.Join(image+".tidemark", "journal.ready"), cmd, rng.IntN(400))
			kill(t, cmd)
		}
		said, err := program(t, "tidemark", "era", "apply", "--finish", image).CombinedOutput()
		if err != nil {
			t.Fatalf("seed %d round %d: %v: %s", seed, round, err, said)
		}
		got, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case bytes.Equal(got, old):
			outcomes["old"]++
		case bytes.Equal(got, fresh):
			outcomes["new"]++
			if bytes.Contains(said, []byte("finished a change")) {
				outcomes["finished"]++
			}
		default:
			t.Fatalf("seed %d round %d: neither old nor new; %s", seed, round, said)
		}
		if left, err := filepath.Glob(image + ".*"); err != nil || len(left) > 0 {
			t.Fatalf("seed %d round %d: left behind: %v, %v", seed, round, left, err)
		}
	}
	if outcomes["old"] == 0 || outcomes["new"] == 0 || outcomes["finished"] == 0 {
		t.Errorf("seed %d: %v: the kills did not meet all stages", seed, outcomes)
	}
}

// TestACopyOverTheTargetIsNotOverwritten puts a good copy in the place of a target
// for which a change waits since its program was killed.
func TestACopyOverTheTargetIsNotOverwritten(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	image := filepath.Join(t.TempDir(), "image")
	old, _, stream := changesOf(t, rng, 24<<20)
	ready := filepath.Join(image+".tidemark", "journal.ready")
	for range 50 {
		if err := os.WriteFile(image, old, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := program(t, "era_apply", image)
		cmd.Stdin = bytes.NewReader(stream)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(ready, cmd, 0)
		kill(t, cmd)
		if _, err := os.Stat(ready); err == nil {
			break
		}
	}
	good := bytes.Repeat([]byte("good"), len(old)/4)
	if err := os.WriteFile(image, good, 0o600); err != nil { // keeps the inode, as cp does
		t.Fatal(err)
	}
	next := program(t, "era_apply", image)
	next.Stdin = bytes.NewReader(stream)
	said, err := next.CombinedOutput()
	if err == nil || !bytes.Contains(said, []byte("has not reached the target")) {
		t.Errorf("%v: %s", err, said)
	}
	if said, err := program(t, "tidemark", "era", "apply", "--discard", image).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, said)
	}
	if got, err := os.ReadFile(image); err != nil || !bytes.Equal(got, good) {
		t.Errorf("the good copy was written to (%v)", err)
	}
	if left, err := filepath.Glob(image + ".*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// changesOf makes an image, what it becomes, and the stream in between.
func changesOf(t *testing.T, rng *rand.Rand, size int64) (old, fresh, stream []byte) {
	t.Helper()
	old, fresh = make([]byte, size), make([]byte, size)
	source := rand.NewChaCha8([32]byte{byte(rng.Uint32())})
	_, _ = source.Read(old) // it never fails
	_, _ = source.Read(fresh)
	var b extent.Builder
	for at := int64(0); at < size; at += rng.Int64N(64) << 12 {
		n := min(rng.Int64N(256)<<12, size-at)
		b.Add(extent.Extent{Off: at, Len: n})
		at += n
	}
	set := b.Set()
	rest := extent.NewSet(extent.Extent{Len: size}).Subtract(set)
	for _, e := range rest.Extents() {
		copy(fresh[e.Off:e.End()], old[e.Off:e.End()])
	}
	var out bytes.Buffer
	if _, err := export.Write(context.Background(), &out, bytes.NewReader(fresh), set, nil); err != nil {
		t.Fatal(err)
	}
	return old, fresh, out.Bytes()
}

// waitFor returns when a file is there and was looked at some more times, or when
// the program has ended.
func waitFor(path string, cmd *exec.Cmd, more int) {
	ended := filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "stat")
	for {
		if _, err := os.Stat(path); err == nil {
			more--
		}
		stat, err := os.ReadFile(ended)
		if more < 0 || err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return
		}
	}
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	_ = cmd.Process.Kill() // it may have ended
	_ = cmd.Wait()         // which is a failure, or not
}

// TestCopyAndApplyEndWithTheirContext blocks both on a pipe of which the other end
// does nothing.
func TestCopyAndApplyEndWithTheirContext(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	if err := os.WriteFile(src, originalSource(), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	nothing, held := io.Pipe()
	defer held.Close()
	std := stdio{nothing, io.Discard, io.Discard}
	if err := asEraCopy(ctx, []string{"8", src}, std); err == nil {
		t.Error("era_copy read a list that was never written")
	}
	image := filepath.Join(dir, "image")
	if err := asEraApply(ctx, []string{image}, std); err == nil {
		t.Error("era_apply read a stream that was never written")
	}
	if left, err := filepath.Glob(image + "*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
