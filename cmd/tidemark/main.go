// Command tidemark keeps incremental, consistent copies of live block devices.
//
// It owns the command line: it parses, calls the packages below and prints.
// What a command does, its flags and its exit codes are said once, in the
// command tree of this package; help, man pages (man/) and completions
// (completions/) are made from that.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"tidemark/linux/dmera"
	"tidemark/linux/dmhold"
	"tidemark/linux/fsfreeze"
	"tidemark/linux/reexec"
	"tidemark/transfer"
)

func main() {
	reexec.Main(fsfreeze.Watchdog, dmhold.Holder, dmera.Step)
	waitForDisks()
	os.Exit(called(os.Args, os.Stdout, os.Stderr))
}

// waitForDisks lets as many goroutines wait in the kernel as there are readers. With a
// processor's share of them, all others stand still until the runtime has noticed that
// these wait: twice the time for scattered reads (docs/design/0004).
func waitForDisks() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(transfer.DefaultReaders, runtime.GOMAXPROCS(0)))
	}
}

// compute takes back what waitForDisks did, for a command that seldom waits for a disk: a share that
// is busy costs memory, and all of them work for the garbage collector.
func compute() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(min(max(4, runtime.NumCPU()), runtime.GOMAXPROCS(0)))
	}
}

// run executes one command line and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := withSignals(context.Background())
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		err = strayHelp(cmd)
	}
	if err == nil {
		return int(exitOK)
	}
	f := failureOf(ctx, cmd, err)
	f.print(stderr)
	if !errors.As(err, new(told)) && wantsJSON(cmd, args) {
		_ = printJSON(stdout, f) // stderr has it
	}
	return int(f.Exit)
}

// withSignals returns a context that SIGINT, SIGTERM or SIGHUP ends, with the signal
// as its cause; SIGHUP unless it is ignored, as nohup does. What the signal interrupted
// unwinds: it thaws, discards and releases before the program ends. A second signal does
// not hurry that.
func withSignals(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case s := <-signals:
			cancel(signalError{s.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
		<-done
	}
}
