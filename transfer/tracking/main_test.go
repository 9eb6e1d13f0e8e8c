package tracking_test

import (
	"os"
	"testing"

	"tidemark/linux/fsfreeze"
	"tidemark/linux/reexec"
)

func TestMain(m *testing.M) {
	reexec.Main(fsfreeze.Watchdog)
	os.Exit(m.Run())
}
