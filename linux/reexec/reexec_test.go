package reexec_test

import (
	"errors"
	"fmt"
	"os"
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

var unknown = reexec.Part{Name: "reexec-test-unknown"}

func TestMain(m *testing.M) {
	reexec.Main(echo)
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

func TestAProgramThatDoesNotKnowThePartDoesNotStartItselfForEver(t *testing.T) {
	cmd := reexec.Command(unknown)
	if err := cmd.Run(); !errors.Is(err, reexec.ErrNoMain) || cmd.Process != nil {
		t.Errorf("%v, exit code %d", err, cmd.ProcessState.ExitCode())
	}
}
