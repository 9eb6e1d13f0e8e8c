package fsfreeze

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// populateText brings the program's code into memory, so that none of it has to
// be read from a disk while filesystems are frozen. Best effort: needs
// MADV_POPULATE_READ (Linux 5.14); before that, what was used so far is in memory.
func populateText() {
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer maps.Close()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	sc := bufio.NewScanner(maps)
	for sc.Scan() {
		line := sc.Text()
		if !strings.HasSuffix(line, " "+exe) {
			continue
		}
		var start, end uintptr
		if _, err := fmt.Sscanf(line, "%x-%x", &start, &end); err != nil || end <= start {
			continue
		}
		// Nothing is changed, and the program's own image never goes away.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, start, end-start, unix.MADV_POPULATE_READ)
	}
}
