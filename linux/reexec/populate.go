package reexec

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// lockProgram brings all of the program's file into memory and keeps it there, so that
// the kernel reads none of it from a disk that may stand still. Best effort.
func lockProgram() {
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
		// No byte changes, and the program's own image never goes away.
		_, _, _ = unix.Syscall(unix.SYS_MLOCK, start, end-start, 0) // best effort
	}
}
