package dmera

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"tidemark/format/era"
	"tidemark/linux/dm"
)

// A step is what must not be left half done: while a device is suspended, whoever
// uses it hangs. A process of its own makes it: its own session, so that nobody
// kills it along with the one that waits for it, deaf to signals, the last to be
// killed for memory, and locked in memory, because the device may be where its
// program lies.

// stepArg is the first argument of a process that is to make a step.
const stepArg = "tidemark-era-step"

// stepEnv is set for it, so that a program that has forgotten to call RunStep does
// not start itself for ever.
const stepEnv = "TIDEMARK_ERA_STEP"

// The steps.
const (
	stepDrain  = "drain"
	stepResize = "resize"
	stepAdopt  = "adopt"
)

// IsStep says whether this process was started to make a step. Call it before
// anything else.
func IsStep() bool {
	return len(os.Args) >= 5 && os.Args[1] == stepArg && os.Getenv(stepEnv) != ""
}

// RunStep makes the step that this process was started for and returns its exit
// status. What goes wrong is said on standard error.
func RunStep() int {
	harden()
	if err := step(os.Args[2], os.Args[3], os.Args[4:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// harden makes the process hard to disturb. Each part is best effort.
func harden() {
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE,
		unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGUSR1, unix.SIGUSR2)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	debug.SetGCPercent(-1)
	_ = unix.Mlockall(unix.MCL_CURRENT)
}

// step makes one step on the device of that name, when it is still the one with
// the number in the first argument.
func step(what, name string, args []string) error {
	ctl, err := dm.Open()
	if err != nil {
		return err
	}
	defer ctl.Close()
	info, err := ctl.Info(name)
	if err != nil {
		return err
	}
	if len(args) == 0 || info.Dev().String() != args[0] {
		return fmt.Errorf("%s: %w: another device has taken the name", name, ErrNotEra)
	}
	if err := onlyTable(info); err != nil {
		return err
	}
	switch {
	case what == stepDrain && len(args) == 1:
		return drain(ctl, name)
	case what == stepResize && len(args) == 2:
		sectors, err := strconv.ParseUint(args[1], 10, 64)
		if err != nil {
			return err
		}
		return reload(ctl, info, change{sectors: sectors})
	case what == stepAdopt && len(args) == 2:
		var id era.Identity
		if err := id.UnmarshalText([]byte(args[1])); err != nil {
			return err
		}
		return reload(ctl, info, change{identity: id})
	}
	return fmt.Errorf("unknown step %q %q", what, args)
}

// runStep starts a process for the step and waits until it has been made.
func runStep(what, name string, dev dm.Dev, args ...string) error {
	if os.Getenv(stepEnv) != "" {
		return errors.New("this program's main does not call RunStep")
	}
	var said strings.Builder
	p := exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        append([]string{os.Args[0], stepArg, what, name, dev.String()}, args...),
		Env:         []string{stepEnv + "=1"},
		Dir:         "/",
		Stderr:      &said,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	err := p.Run()
	if said := strings.TrimSpace(said.String()); err != nil && said != "" {
		return errors.New(said)
	}
	return err
}
