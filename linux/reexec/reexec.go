// Package reexec starts this program once more for a job that must not be left half
// done: a process of its own, which goes on when the program that started it dies.
//
// For most uses, call [Main] first in main, with every [Part] that the program's
// packages have: fsfreeze.Watchdog for views, dmhold.Holder for devices of device-mapper,
// dmera.Step for dm-era devices.
//
//	func main() {
//		reexec.Main(fsfreeze.Watchdog, dmhold.Holder, dmera.Step)
//		…
//	}
//
// A part runs in a session of its own and does not depend on the file that the program
// was started from, which may have been replaced since. Functions may be called by
// several goroutines at once, but Main, which is called before there are any.
package reexec

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrNoMain says that the program's main did not call Main with the part. Started anew,
// such a program would do from the beginning what it does anyway.
var ErrNoMain = errors.New("this program's main does not call reexec.Main with all parts")

// Part is a job that the program starts itself for.
type Part struct {
	Name string                  // as ps shows it; no other part has it
	Run  func(args []string) int // returns the exit status of the process
}

// marker is set in the environment of a process that was started for a part.
const marker = "TIDEMARK_PART"

// known are the names of the parts that Main was called with. Only Main writes it, before
// the program does anything else.
var known = map[string]bool{}

// Main runs the part that this process was started for, if it was started for one, and
// ends the process. Otherwise it returns.
func Main(parts ...Part) {
	for _, p := range parts {
		known[p.Name] = true
	}
	name := os.Getenv(marker)
	if name == "" || len(os.Args) < 2 || os.Args[1] != name {
		return
	}
	for _, p := range parts {
		if p.Name == name {
			os.Exit(p.Run(os.Args[2:]))
		}
	}
}

// Command returns the command that starts a part, in a session of its own and with an
// empty environment. Starting it fails with ErrNoMain unless Main was called with p.
func Command(p Part, args ...string) *exec.Cmd {
	cmd := &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        append([]string{os.Args[0], p.Name}, args...),
		Env:         []string{marker + "=" + p.Name},
		Dir:         "/",
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if !known[p.Name] {
		cmd.Err = ErrNoMain
	}
	return cmd
}

// Harden makes this process hard to disturb: signals that end or stop it are ignored, it
// is the last to be killed for memory, and what it has in memory, or will have, stays
// there: the disk that its program lies on may stand still. Each step is best effort.
func Harden() {
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE,
		unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGUSR1, unix.SIGUSR2)
	if f, err := os.OpenFile("/proc/self/oom_score_adj", os.O_WRONLY, 0); err == nil {
		_, _ = f.WriteString("-1000") // best effort
		f.Close()
	}
	debug.SetGCPercent(-1)
	LockMemory()
}

// LockMemory keeps what this process has in memory there, its program first of all, until the
// function that it returns is called: the disk that either lies on may stand still. Best effort.
func LockMemory() (unlock func()) {
	lockProgram()
	// MCL_ONFAULT: the address space is far larger than what is in use. The flag alone
	// leaves code that was not used yet on the disk, which lockProgram has read.
	_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT) // best effort
	return func() { _ = unix.Munlockall() }                                  // cannot fail
}
