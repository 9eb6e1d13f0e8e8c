package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"

	"tidemark/format/snapstore"
)

const (
	storeRounds = 3
	storeOrigin = 1 << 30 // bytes
)

// store measures applying a store beside the dd lines that do the same, and beside dd writing as
// much in one go, on loop devices without a page cache of their own; and checking a large store.
func store(l *lab) error {
	fmt.Printf("## snapstore apply beside dd\n\nA store applied to a loop device of 1 GiB over a file in memory, until all is on it, and the same by the lines of `snapstore list -d`, run by one sh, and by one dd of as much, oflag=direct; %d rounds in turns.\n\n", storeRounds)
	fmt.Print("| | tidemark, s | its dd lines / it | one dd / it |\n|---|---|---|---|\n")
	for _, c := range []struct {
		words        string
		chunk, count int64
		ordered      bool
	}{
		{"4 KiB chunks, at random", 4 << 10, 4096, false},
		{"64 KiB chunks, at random", 64 << 10, 2048, false},
		{"4 KiB chunks, in order", 4 << 10, 1 << 17, true},
	} {
		if err := l.storeJob(c.words, c.chunk, c.count, c.ordered); err != nil {
			return err
		}
	}
	fmt.Println()
	return l.largeStore()
}

func (l *lab) storeJob(words string, chunk, count int64, ordered bool) error {
	path := l.path("store.img")
	if err := writeStore(path, chunk, count, storeOrigin/chunk, ordered); err != nil {
		return err
	}
	image := l.path("origin.img")
	if _, err := l.do("truncate", "-s", strconv.Itoa(storeOrigin), image); err != nil {
		return err
	}
	loop, err := l.do("losetup", "--find", "--show", "--direct-io=on", image)
	if err != nil {
		return err
	}
	defer l.do("losetup", "--detach", loop)
	lines := l.path("lines")
	if _, err := l.do("sh", "-c", fmt.Sprintf("%s snapstore list -d --origin %s %s | sed 's/$/ status=none/' >%s; echo sync %s >>%s", l.tidemark, loop, path, lines, loop, lines)); err != nil {
		return err
	}
	var ours, theirs, straight sample
	for range storeRounds {
		u, err := timed(l.command(l.tidemark, "snapstore", "apply", path, loop))
		if err != nil {
			return err
		}
		ours = append(ours, u.wall)
		if !ordered { // a dd for each of so many chunks takes minutes
			if u, err = timed(l.command("sh", "-e", lines)); err != nil {
				return err
			}
			theirs = append(theirs, u.wall)
		}
		if u, err = timed(l.command("dd", "if="+path, "of="+loop, "bs=1M", "oflag=direct", "conv=fsync", "status=none", "count="+strconv.FormatInt(max(chunk*count>>20, 1), 10))); err != nil {
			return err
		}
		straight = append(straight, u.wall)
	}
	lineRatio := ""
	if !ordered {
		lineRatio = "**" + theirs.over(ours).spread("%.1f") + "**"
	}
	fmt.Printf("| %s, %d MiB | %s | %s | **%s** |\n", words, chunk*count>>20, ours.spread("%.3f"), lineRatio, straight.over(ours).spread("%.2f"))
	return nil
}

// writeStore makes a store of so many exceptions. The seed is fixed: figures must be comparable.
func writeStore(path string, chunk, count, chunks int64, ordered bool) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	size := snapstore.SizeFor(count, chunk)
	if err := f.Truncate(size); err != nil {
		return err
	}
	w, err := snapstore.NewWriter(f, size, chunk)
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, chunk)
	order := rng.Perm(int(chunks))
	for i := range count {
		old := uint64(order[i])
		if ordered {
			old = uint64(i)
		}
		data[i%chunk] = byte(i)
		if err := w.Add(old, data); err != nil {
			return err
		}
	}
	return w.End(f.Sync)
}

// largeStore measures checking the list of ten million exceptions, in a sparse file.
func (l *lab) largeStore() error {
	path := l.path("large.img")
	if err := writeList(path, 10_000_000); err != nil {
		return err
	}
	var user, memory sample
	for range storeRounds {
		u, err := timed(l.command(l.tidemark, "snapstore", "check", path))
		if err != nil {
			return err
		}
		user, memory = append(user, u.user), append(memory, float64(u.memory)/(1<<20))
	}
	fmt.Printf("A store of 10 million exceptions of 4 KiB, at random in 4 TiB, is checked in %s s of user time and %s MiB.\n\n", user.spread("%.2f"), memory.spread("%.0f"))
	return nil
}

// writeList writes the list of a store, and no data.
func writeList(path string, count int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	const chunk = 4096
	if err := f.Truncate(snapstore.SizeFor(count, chunk)); err != nil {
		return err
	}
	w, err := snapstore.NewWriter(noData{f, chunk}, snapstore.SizeFor(count, chunk), chunk)
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(1, 2))
	const step = 1 << 30 / 10_000_000
	for i, n := range rng.Perm(int(count)) {
		if err := w.Add(uint64(n)*step+uint64(i%step), nil); err != nil {
			return err
		}
	}
	return w.End(f.Sync)
}

// noData is a store's file that keeps all but chunks of zeros.
type noData struct {
	f     *os.File
	chunk int
}

func (n noData) WriteAt(p []byte, off int64) (int, error) {
	for _, b := range p {
		if b != 0 {
			return n.f.WriteAt(p, off)
		}
	}
	return len(p), nil
}
