// Package layout tells what lies where in a disk or its image, without mounting anything.
//
// For most uses, call [Partitions] with the path of an image, and [Files] with ranges of one
// that holds a filesystem of the kind ext2, ext3 or ext4. The work is done by sfdisk(8) of
// util-linux and debugfs(8) of e2fsprogs, which open the path for reading; the package owns
// their arguments and the reading of what they print. It refuses output that it does not
// know. It holds no state; its functions may be called by several goroutines at once.
package layout

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"tidemark/extent"
)

// ErrMissing says that a program is not installed; its text names the package that has it.
var ErrMissing = errors.New("not installed")

// Partition is one of a disk.
type Partition struct {
	Number int
	extent.Extent
}

// Partitions lists the partitions of the disk or image at path, those within extended ones
// too, in the order of the table. The error wraps ErrMissing, or says that there is no table.
func Partitions(ctx context.Context, path string) ([]Partition, error) {
	out, err := run(ctx, "fdisk", "sfdisk", "--json", path)
	if err != nil {
		return nil, err
	}
	var all struct {
		Table struct {
			SectorSize int64
			Partitions []struct {
				Node        string
				Start, Size int64
				Type        string
			}
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal(out, &all); err != nil {
		return nil, fmt.Errorf("sfdisk: %w", err)
	}
	sector := all.Table.SectorSize
	if sector == 0 {
		sector = 512 // sfdisks before 2.35 do not say it
	}
	var found []Partition
	for _, p := range all.Table.Partitions {
		digits := strings.TrimLeft(strings.TrimPrefix(p.Node, path), "p")
		number, err := strconv.Atoi(digits)
		if err != nil || p.Start < 0 || p.Size < 0 {
			return nil, fmt.Errorf("sfdisk: partition %q of %s", p.Node, path)
		}
		switch strings.ToLower(p.Type) {
		case "5", "f", "85": // extended: others lie in it
			continue
		}
		found = append(found, Partition{number, extent.Extent{Off: p.Start * sector, Len: p.Size * sector}})
	}
	return found, nil
}

// MaxBlocks is of how many blocks Files tells.
const MaxBlocks = 1000

// Files tells which files of the ext2, ext3 or ext4 filesystem that begins at byte off of the
// disk or image at path have content in the ranges, given in bytes from its start: for each
// range their paths in it, or "its journal" and the like. Of the blocks after the first
// MaxBlocks nothing is told. The error wraps ErrMissing.
func Files(ctx context.Context, path string, off int64, ranges []extent.Extent) ([][]string, error) {
	image := fmt.Sprintf("%s?offset=%d", path, off)
	out, err := debugfs(ctx, "stats -h", image)
	if err != nil {
		return nil, err
	}
	size, err := blockSize(out)
	if err != nil {
		return nil, err
	}
	numbers := blocksOf(ranges, size)
	if len(numbers) == 0 {
		return make([][]string, len(ranges)), nil
	}
	if out, err = debugfs(ctx, "icheck "+strings.Join(numbers, " "), image); err != nil {
		return nil, err
	}
	inodes := pairsIn(out) // by block
	var asked []string
	seen := map[string]bool{}
	for _, p := range inodes {
		if _, err := strconv.Atoi(p[1]); err == nil && !seen[p[1]] {
			seen[p[1]] = true
			asked = append(asked, p[1])
		}
	}
	names := map[string][]string{}
	if len(asked) > 0 {
		if out, err = debugfs(ctx, "ncheck "+strings.Join(asked, " "), image); err != nil {
			return nil, err
		}
		for _, p := range pairsIn(out) {
			names[p[0]] = append(names[p[0]], "/"+strings.TrimLeft(p[1], "/"))
		}
	}
	byBlock := map[string]string{}
	for _, p := range inodes {
		byBlock[p[0]] = p[1]
	}
	return assign(ranges, size, byBlock, names), nil
}

// blocksOf lists the numbers of the blocks that the ranges touch.
func blocksOf(ranges []extent.Extent, size int64) (numbers []string) {
	for _, r := range ranges {
		for b := r.Off / size; b*size < r.End() && len(numbers) < MaxBlocks; b++ {
			numbers = append(numbers, strconv.FormatInt(b, 10))
		}
	}
	return numbers
}

// assign puts the names of the inodes to the ranges.
func assign(ranges []extent.Extent, size int64, inodes map[string]string, names map[string][]string) [][]string {
	all := make([][]string, len(ranges))
	for i, r := range ranges {
		seen := map[string]bool{}
		for b := r.Off / size; b*size < r.End(); b++ {
			inode, ok := inodes[strconv.FormatInt(b, 10)]
			if !ok {
				break // past MaxBlocks
			}
			for _, name := range append(names[inode], special(inode)...) {
				if !seen[name] {
					seen[name] = true
					all[i] = append(all[i], name)
				}
			}
		}
	}
	return all
}

// special names the inodes that have no path; see fs/ext4/ext4.h.
func special(inode string) []string {
	switch inode {
	case "2":
		return []string{"/"}
	case "7":
		return []string{"its room for growth"}
	case "8":
		return []string{"its journal"}
	}
	return nil
}

func blockSize(stats string) (int64, error) {
	for line := range strings.Lines(stats) {
		if text, ok := strings.CutPrefix(line, "Block size:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			if err == nil && n > 0 {
				return n, nil
			}
		}
	}
	return 0, fmt.Errorf("debugfs: no block size in %q", stats)
}

// pairsIn returns the lines of a table of debugfs, a number and a text each. A name may have
// newlines in it.
func pairsIn(table string) (all [][2]string) {
	_, table, _ = strings.Cut(table, "\n") // the heading
	for line := range strings.SplitSeq(strings.TrimSuffix(table, "\n"), "\n") {
		number, text, ok := strings.Cut(line, "\t")
		if _, err := strconv.Atoi(number); ok && err == nil {
			all = append(all, [2]string{number, text})
		} else if n := len(all); n > 0 {
			all[n-1][1] += "\n" + line
		}
	}
	return all
}

func debugfs(ctx context.Context, command, image string) (string, error) {
	out, err := run(ctx, "e2fsprogs", "debugfs", "-R", command, image)
	if err == nil && len(out) == 0 {
		err = errors.New("debugfs: it printed nothing")
	}
	return string(out), err
}

// run runs a program of a package and returns what it printed.
func run(ctx context.Context, from, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%s: %w: it is in the package %s", program, ErrMissing, from)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(said.String()))
	}
	return out, nil
}
