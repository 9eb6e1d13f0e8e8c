package bpf

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeDisks shows this goroutine, and nobody else, files in place of /sys/block. The
// thread ends with it.
func fakeDisks(t *testing.T, files map[string]string) {
	t.Helper()
	runtime.LockOSThread()
	for _, step := range []func() error{
		func() error { return unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS) },
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount("none", "/sys/block", "tmpfs", 0, "") },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		dir := "/sys/block/" + name + "/queue"
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/iostats", []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A count of none in flight means nothing where a path leaves its requests out.
func TestNVMePathThatMayNotCountIsNamed(t *testing.T) {
	fakeDisks(t, map[string]string{
		"nvme0n1": "0", "nvme0c0n1": "1", "nvme0c1n1": "1",
		"nvme1n1": "0", "nvme1c0n1": "1", "nvme1c1n1": "0",
		"zram0": "0",
	})
	for disk, want := range map[string]string{
		"nvme0n1": "", "nvme1n1": "/sys/block/nvme1c1n1", "zram0": "",
	} {
		if got, err := mayNotCount(disk); got != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", disk, got, err, want)
		}
	}
}
