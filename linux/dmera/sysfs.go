package dmera

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/linux/dm"
)

// queue is a disk's folder in sysfs.
type queue string

func queueOf(d dm.Dev) queue { return queue("/sys/dev/block/" + d.String()) }

// discardMax returns the largest discard that the device takes, in bytes; 0 means
// that it takes none.
func (q queue) discardMax() (uint64, error) {
	return readNumber(filepath.Join(string(q), "queue/discard_max_bytes"))
}

// forbidDiscards makes the device take no discards, until its table is replaced.
func (q queue) forbidDiscards() error {
	most, err := q.discardMax()
	if err != nil || most == 0 {
		return err
	}
	if err := os.WriteFile(filepath.Join(string(q), "queue/discard_max_bytes"), []byte("0"), 0); err != nil {
		return fmt.Errorf("switch discards off: %w", err)
	}
	if most, err = q.discardMax(); err == nil && most != 0 {
		err = fmt.Errorf("switch discards off: the kernel still takes %d bytes", most)
	}
	return err
}

// discardField is the place of "discard I/Os" in Documentation/block/stat.rst.
const discardField = 11

// discards counts the discards that the device has been through with.
func (q queue) discards() (uint64, error) {
	name := filepath.Join(string(q), "stat")
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	words := strings.Fields(string(b))
	if len(words) <= discardField {
		return 0, nil // before Linux 4.18
	}
	n, err := strconv.ParseUint(words[discardField], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}

func readNumber(name string) (uint64, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}

// nodeOf returns a path of the block device with that number: /dev/mapper/NAME
// where there is one, or what the kernel calls it.
func nodeOf(d dm.Dev) (string, error) {
	dir := "/sys/dev/block/" + d.String()
	if name, err := os.ReadFile(filepath.Join(dir, "dm/name")); err == nil {
		path := filepath.Join("/dev/mapper", strings.TrimSuffix(string(name), "\n"))
		if isNode(path, d) {
			return path, nil
		}
	}
	uevent, err := os.ReadFile(filepath.Join(dir, "uevent"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("device %s is gone: %w", d, err)
	}
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(uevent)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
			path := filepath.Join("/dev", name)
			if isNode(path, d) {
				return path, nil
			}
			return "", fmt.Errorf("device %s: %s is not its node: is devtmpfs mounted on /dev?", d, path)
		}
	}
	return "", fmt.Errorf("device %s has no name in sysfs", d)
}

func isNode(path string, d dm.Dev) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK &&
		unix.Major(st.Rdev) == d.Major && unix.Minor(st.Rdev) == d.Minor
}
