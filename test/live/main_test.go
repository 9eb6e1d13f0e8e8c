package live_test

import (
	"flag"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"tidemark/linux/fsfreeze"
	"tidemark/linux/reexec"
)

// runs is how many incremental runs each case makes. CI makes few; the numbers in
// docs/benchmarks.md were made with -runs 20.
var runs = flag.Int("runs", defaultRuns, "incremental runs of each stress case")

const defaultRuns = 2

func TestMain(m *testing.M) {
	reexec.Main(fsfreeze.Watchdog)
	flag.Parse()
	if os.Geteuid() != 0 {
		os.Stderr.WriteString("these tests attach devices and freeze filesystems: run them as root\n")
		os.Exit(1)
	}
	// What is ignored here would be ignored by the program as well; what is caught is not.
	if signal.Ignored(syscall.SIGHUP) { // by nohup
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	os.Exit(run(m))
}

// tidemark is the program under test.
var tidemark string

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "tidemark-bin-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	// Anybody may run it: some tests do so as nobody.
	if err := os.Chmod(dir, 0o755); err != nil {
		panic(err)
	}
	if tidemark, err = build(dir); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		return 1
	}
	return m.Run()
}
