package live_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// background starts a program that runs until the test ends, in a process group
// of its own so that its children end with it.
func background(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v (scripts/setup installs it)", name, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() {
		select {
		case err := <-done:
			t.Errorf("%s ended by itself: %v", name, err)
			return
		default:
		}
		// Asked to end, both end their children, which have groups of their own.
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Errorf("%s does not end", name)
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-done
		}
	})
}

// load writes data with fio (buffered, direct and synchronous) and metadata with
// stress-ng until the test ends.
func load(t testing.TB, at string) {
	t.Helper()
	job := filepath.Join(t.TempDir(), "load.fio")
	err := os.WriteFile(job, []byte(`[global]
directory=`+at+`
time_based
runtime=3600
rate=8m
[buffered]
rw=randwrite
bs=4k
size=32m
ioengine=psync
fsync=64
[direct]
rw=randwrite
bsrange=4k-64k
size=32m
ioengine=libaio
direct=1
iodepth=16
[append]
rw=write
bs=128k
size=24m
ioengine=psync
create_on_open=1
unlink_each_loop=1
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	background(t, "fio", "--output=/dev/null", job)
	background(t, "stress-ng", "--quiet", "--temp-path", at, "--dir", "1", "--dir-dirs", "256",
		"--rename", "1", "--link", "1", "--dentry", "1", "--dentries", "128", "--timeout", "3600")
}
