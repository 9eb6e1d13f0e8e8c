package mounts

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"tidemark/linux/sysfs"
)

// Swap is a swap area in use. A freeze does not stop it: the kernel writes to a
// swap device, and to the blocks of a swap file, past every filesystem.
type Swap struct {
	Path string
	File bool // a file on a filesystem, not a device
}

func (s system) readSwaps() ([]Swap, error) {
	f, err := os.Open(filepath.Join(s.proc, "swaps"))
	if absent(err) {
		return nil, nil // a kernel without swap
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseSwaps(f)
}

// parseSwaps reads /proc/swaps: a heading, then a line per area with its path
// (octal escapes for blanks), its type, and numbers that are of no use here.
func parseSwaps(r io.Reader) ([]Swap, error) {
	var swaps []Swap
	sc := bufio.NewScanner(r)
	for line := 0; sc.Scan(); line++ {
		fields := strings.Fields(sc.Text())
		if line == 0 || len(fields) == 0 {
			continue
		}
		if len(fields) < 2 {
			return nil, fmt.Errorf("swaps: line %d: %q has no type", line+1, sc.Text())
		}
		swaps = append(swaps, Swap{Path: unescapeOctal(fields[0]), File: fields[1] == "file"})
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("swaps: %w", err)
	}
	return swaps, nil
}

// unescapeOctal undoes the kernel's \040 for a blank.
func unescapeOctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// SwapsOn returns the swap areas in use, as files or as devices, on the devices and on all
// that is stacked on them.
func (t *Table) SwapsOn(devs ...sysfs.Dev) ([]Swap, error) {
	set, err := t.stack(devs)
	if err != nil {
		return nil, err
	}
	var on []Swap
	for _, s := range t.swaps {
		if t.swapIsOn(s, set) {
			on = append(on, s)
		}
	}
	return on, nil
}

func (t *Table) swapIsOn(s Swap, set map[sysfs.Dev]bool) bool {
	if s.File {
		f, err := t.of(s.Path)
		return err == nil && f != nil && f.isOn(set)
	}
	d, ok := t.sourceDevice(s.Path)
	return ok && set[d]
}
