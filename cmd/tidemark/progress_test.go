package main

import (
	"bytes"
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"tidemark/transfer"
	"tidemark/transfer/target"
	"tidemark/transfer/transaction"
)

func TestPlainProgressIsALineEveryTenSeconds(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	p := &lines{w: &out, now: func() time.Time { return now }}
	p.Begin("copy", 100<<20)
	for range 25 {
		now = now.Add(time.Second)
		p.Done(int64(now.Unix()) << 20)
	}
	p.End()
	p.Begin("commit", 1<<20)
	p.Done(1 << 20)
	p.End()
	const want = "copy: 10 MiB of 100 MiB, 1.0 MiB/s\n" +
		"copy: 20 MiB of 100 MiB, 1.0 MiB/s\n" +
		"copy: 25 MiB of 100 MiB, 1.0 MiB/s\n"
	if out.String() != want {
		t.Errorf("got:\n%swant:\n%s", out.String(), want)
	}
}

func TestABarDrawsOnlyWhenItIsToldAndLeavesNothingOnItsLine(t *testing.T) {
	var out bytes.Buffer
	p := &bars{w: &out}
	p.Begin("copy", 100<<20)
	p.Done(50 << 20)
	drawn := out.Len()
	if drawn == 0 {
		t.Fatal("nothing was drawn")
	}
	out.WriteString("^C") // a terminal's echo
	p.End()
	p.Note("done")
	const cleared = "\x1b[2K\r"
	if !bytes.HasSuffix(out.Bytes(), []byte(cleared+"done\n")) {
		t.Errorf("got %q", out.String())
	}
}

func TestRepeatGoesOnAfterWhatPasses(t *testing.T) {
	results := []error{nil, transfer.ErrNotConverging, transaction.ErrBusy, syscall.EIO, target.ErrRefused, nil}
	calls, told := 0, 0
	err := repeat(context.Background(), time.Microsecond, func(context.Context, func() time.Time) error {
		calls++
		return results[calls-1]
	}, func(error, time.Time) { told++ })
	if !errors.Is(err, target.ErrRefused) || calls != 5 || told != 3 {
		t.Errorf("ended with %v after %d calls, told of %d", err, calls, told)
	}
}

func TestRepeatEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	err := repeat(ctx, time.Hour, func(context.Context, func() time.Time) error { cancel(); return nil }, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

func TestSizesAreThoseOfStorageTools(t *testing.T) {
	for text, want := range map[string]byteSize{
		"16T": 16 << 40, "16TiB": 16 << 40, "16TB": 16e12, "2M": 2 << 20, "2m": 2 << 20, "64kib": 64 << 10,
		"4096s": 2 << 20, "4096": 4096, "500G": 500 << 30, "1.5G": 3 << 29, "4KiB": 4096, "100MB": 100e6,
	} {
		var b byteSize
		if err := b.Set(text); err != nil || b != want {
			t.Errorf("%s: %d, %v, want %d", text, b, err, want)
		}
	}
	for _, text := range []string{"", "0", "s", "-1", "-1G", "x", "1 parsec", "1.5s4", "20EiB", "16777216P", "99999999999999999s"} {
		var b byteSize
		if err := b.Set(text); err == nil {
			t.Errorf("%q is taken as %d", text, b)
		}
	}
}
