package logwrites_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"tidemark/test/vm/logwrites"
)

const (
	sector   = 512
	diskSize = 64 * sector
)

// written is one entry of a log that a test makes.
type written struct {
	sector, sectors uint64
	flags           logwrites.Flags
	fill            byte
	name            string
}

// encode writes a log as the kernel does.
func encode(entries ...written) []byte {
	b := make([]byte, sector)
	binary.LittleEndian.PutUint64(b, 0x6a736677736872)
	binary.LittleEndian.PutUint64(b[8:], 1)
	binary.LittleEndian.PutUint64(b[16:], uint64(len(entries)))
	binary.LittleEndian.PutUint32(b[24:], sector)
	for _, e := range entries {
		head := make([]byte, sector)
		binary.LittleEndian.PutUint64(head, e.sector)
		binary.LittleEndian.PutUint64(head[8:], e.sectors)
		binary.LittleEndian.PutUint64(head[16:], uint64(e.flags))
		binary.LittleEndian.PutUint64(head[24:], uint64(len(e.name)))
		copy(head[32:], e.name)
		b = append(b, head...)
		if e.flags&logwrites.Discard == 0 {
			b = append(b, bytes.Repeat([]byte{e.fill}, int(e.sectors)*sector)...)
		}
	}
	return b
}

func sample() []byte {
	return encode(
		written{sector: 0, sectors: 16, fill: 'a'},
		written{sector: 4, sectors: 2, fill: 'b'},
		written{flags: logwrites.Flush},
		written{flags: logwrites.Mark, name: "begin"},
		written{sector: 1, sectors: 1, fill: 'c', flags: logwrites.FUA},
		written{sector: 8, sectors: 4, flags: logwrites.Discard},
		written{sector: 20, sectors: 24, fill: 'd'},
		written{sector: 60, sectors: 1, fill: 'e', flags: logwrites.Flush | logwrites.FUA},
	)
}

func read(t testing.TB, b []byte) *logwrites.Log {
	t.Helper()
	l, err := logwrites.Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// picture is a disk with one letter for each sector.
func picture(t testing.TB, disk []byte) string {
	t.Helper()
	var out []byte
	for at := 0; at < len(disk); at += sector {
		s := disk[at : at+sector]
		if !bytes.Equal(s, bytes.Repeat(s[:1], sector)) {
			t.Fatalf("sector %d is torn inside", at/sector)
		}
		out = append(out, max(s[0], '.'))
	}
	return string(out)
}

func TestReplayStopsAtWhatIsDurable(t *testing.T) {
	r := read(t, sample()).Replay(diskSize)
	for _, want := range []struct{ disk, name string }{
		{"aaaabbaaaaaaaaaa................................................", ""},
		{"aaaabbaaaaaaaaaa................................................", "begin"},
		{"acaabbaaaaaaaaaa................................................", ""},
		{"acaabbaa....aaaa....dddddddddddddddddddddddd................e...", ""},
	} {
		e, more, err := r.Advance()
		if err != nil || !more || e.Name != want.name {
			t.Fatalf("%+v, %v, %v", e, more, err)
		}
		if got := picture(t, r.Disk); got != want.disk {
			t.Fatalf("before entry %d\n%s, want\n%s", r.Next, got, want.disk)
		}
	}
	if _, more, err := r.Advance(); more || err != nil {
		t.Fatalf("there is more: %v", err)
	}
}

// What a cut leaves is made of what is durable and of what was being written, and of
// each case there is one.
func TestTornDisksHoldNothingElse(t *testing.T) {
	r := read(t, sample()).Replay(diskSize)
	for range 3 {
		if _, _, err := r.Advance(); err != nil {
			t.Fatal(err)
		}
	}
	before := picture(t, r.Disk)
	rng := rand.New(rand.NewPCG(1, 2))
	seen := map[string]bool{}
	for range 300 {
		disk, err := r.Torn(rng)
		if err != nil {
			t.Fatal(err)
		}
		now := picture(t, disk)
		for i := range now {
			switch discarded, written := i >= 8 && i < 12, i >= 20 && i < 44; {
			case now[i] == before[i], discarded && now[i] == '.', written && now[i] == 'd':
			default:
				t.Fatalf("sector %d: %s", i, now)
			}
		}
		if trimmed := now[8:12]; trimmed != "aaaa" && trimmed != "...." {
			t.Fatalf("a physical block is torn: %s", now)
		}
		seen[now[20:44]] = true
	}
	if len(seen) < 20 || picture(t, r.Disk) != before {
		t.Fatalf("%d outcomes; the disk itself is %s", len(seen), picture(t, r.Disk))
	}
}

func TestMarksAreFoundByName(t *testing.T) {
	l := read(t, sample())
	if at := l.Marked("begin"); at != 3 {
		t.Fatalf("at %d", at)
	}
	if at := l.Marked("end"); at != -1 {
		t.Fatalf("at %d", at)
	}
}

func TestWhatIsNoLogIsRefused(t *testing.T) {
	change := func(off int, to byte) []byte {
		b := sample()
		b[off] = to
		return b
	}
	long := encode(written{flags: logwrites.Mark, name: "x"})
	binary.LittleEndian.PutUint64(long[sector+24:], 481)
	for name, tt := range map[string]struct {
		b    []byte
		want error
	}{
		"empty":                {nil, logwrites.ErrNotLog},
		"magic":                {change(0, 0), logwrites.ErrNotLog},
		"version":              {change(8, 2), logwrites.ErrNotLog},
		"sector size":          {change(24, 1), logwrites.ErrDamaged},
		"too many entries":     {change(16, 9), logwrites.ErrDamaged},
		"absurd count":         {change(20, 1), logwrites.ErrDamaged},
		"cut short":            {sample()[:len(sample())-1], logwrites.ErrDamaged},
		"far beyond any disk":  {change(sector+6, 1), logwrites.ErrDamaged},
		"mark longer than can": {long, logwrites.ErrDamaged},
	} {
		if _, err := logwrites.Read(bytes.NewReader(tt.b), int64(len(tt.b))); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := read(t, sample()).Replay(diskSize / 2)
	for {
		_, more, err := r.Advance()
		if errors.Is(err, logwrites.ErrDamaged) {
			break
		}
		if !more || err != nil {
			t.Fatalf("a write behind the end of the disk: %v", err)
		}
	}
}

// Whatever is read replays to an end, with or without an error, and stays in bounds.
func FuzzRead(f *testing.F) {
	f.Add(sample())
	f.Add(encode())
	f.Add(encode(written{sector: 1 << 40, sectors: 1 << 40, flags: logwrites.Discard}))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := logwrites.Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		r := l.Replay(diskSize)
		rng := rand.New(rand.NewPCG(0, 0))
		for more := true; more && err == nil; {
			if _, err = r.Torn(rng); err == nil {
				_, more, err = r.Advance()
			}
		}
		if err != nil && !errors.Is(err, logwrites.ErrDamaged) {
			t.Fatal(err)
		}
	})
}
