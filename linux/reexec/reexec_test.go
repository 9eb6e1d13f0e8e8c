package reexec_test

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/linux/reexec"
)

var echo = reexec.Part{Name: "reexec-test-echo", Run: func(args []string) int {
	reexec.Harden()
	sid, _ := unix.Getsid(0)
	fmt.Println(strings.Join(args, " "), sid == os.Getpid(), len(os.Environ()))
	return len(args)
}}

// resident prints how much of the program's own code and constants is not in memory, in
// KiB, once it is hardened.
var resident = reexec.Part{Name: "reexec-test-resident", Run: func([]string) int {
	reexec.Harden()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return 1
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return 1
	}
	mappings, missing, inside := 0, 0, false
	for line := range strings.Lines(string(smaps)) {
		fields := strings.Fields(line)
		switch {
		case !strings.HasSuffix(fields[0], ":"):
			inside = fields[len(fields)-1] == exe
			if inside {
				mappings++
			}
		case inside && (fields[0] == "Size:" || fields[0] == "Rss:"):
			kib, err := strconv.Atoi(fields[1])
			if err != nil {
				return 1
			}
			if fields[0] == "Rss:" {
				kib = -kib
			}
			missing += kib
		}
	}
	fmt.Println(mappings > 0, missing)
	return 0
}}

var unknown = reexec.Part{Name: "reexec-test-unknown"}

func TestMain(m *testing.M) {
	reexec.Main(echo, resident)
	if os.Getenv("TIDEMARK_PART") != "" { // started for a part that Main was not told of
		os.Exit(7)
	}
	os.Exit(m.Run())
}

func TestAPartRunsInASessionOfItsOwn(t *testing.T) {
	cmd := reexec.Command(echo, "one", "two")
	out, err := cmd.Output()
	if got := strings.TrimSpace(string(out)); got != "one two true 1" || cmd.ProcessState.ExitCode() != 2 {
		t.Errorf("%q, %v", got, err)
	}
}

// The disk that the program lies on may stand still: no page of it is read from then on.
func TestTheWholeProgramIsInMemory(t *testing.T) {
	out, err := reexec.Command(resident).Output()
	if got := strings.TrimSpace(string(out)); err != nil || got != "true 0" {
		t.Errorf("mapped, and KiB that are not in memory: %q, %v", got, err)
	}
}

func TestAProgramThatDoesNotKnowThePartDoesNotStartItselfForEver(t *testing.T) {
	cmd := reexec.Command(unknown)
	if err := cmd.Run(); !errors.Is(err, reexec.ErrNoMain) || cmd.Process != nil {
		t.Errorf("%v, exit code %d", err, cmd.ProcessState.ExitCode())
	}
}
