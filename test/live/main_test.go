package live_test

import (
	"flag"
	"os"
	"testing"

	"tidemark/linux/fsfreeze"
)

// runs is how many incremental runs each case makes. CI makes few; the numbers in
// docs/benchmarks.md were made with -runs 20.
var runs = flag.Int("runs", 4, "incremental runs of each stress case")

func TestMain(m *testing.M) {
	if fsfreeze.IsWatchdog() {
		os.Exit(fsfreeze.RunWatchdog())
	}
	flag.Parse()
	if os.Geteuid() != 0 {
		os.Stderr.WriteString("these tests attach devices and freeze filesystems: run them as root\n")
		os.Exit(1)
	}
	os.Exit(m.Run())
}
