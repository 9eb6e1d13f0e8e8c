//go:build linux

package dm_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/linux/dm"
	"tidemark/test/vm/guest"
)

// Where udevd runs, every change waits for it, by the cookies that dmsetup answers.
// This test plays udevd, with the real events and dmsetup as the rules call it.
func TestCookiesAreThoseOfDmsetup(t *testing.T) {
	t.Setenv("DM_DISABLE_UDEV", "")
	must(t, nil, os.Unsetenv("DM_DISABLE_UDEV"))
	for _, path := range []string{"/run/udev/control", "/run/udev/rules.d/95-dm-notify.rules"} {
		must(t, nil, os.MkdirAll(filepath.Dir(path), 0o755))
		guest.WriteFile(t, path, "")
		t.Cleanup(func() { must(t, nil, os.Remove(path)) })
	}
	said := make(chan string, 64)
	stop := udevd(t, said)
	ctl := open(t)
	device(t, ctl, "cookie", target(64, "zero", ""))
	must(t, nil, ctl.Rename("cookie", "biscuit"))
	must(t, nil, ctl.Rename("biscuit", "cookie"))
	_, err := ctl.Load("cookie", []dm.Target{target(128, "zero", "")}, dm.LoadOptions{})
	must(t, nil, err)
	_, err = ctl.ResumeHidden("cookie")
	must(t, nil, err)
	must(t, nil, ctl.Remove("cookie", dm.RemoveOptions{}))
	stop()
	close(said)
	var events []string
	for line := range said {
		events = append(events, line)
	}
	if got, want := strings.Join(events, ", "), "change, change, change, change hidden, remove"; got != want {
		t.Errorf("events with cookies: %s, want %s", got, want)
	}
	if left := guest.Run(t, "dmsetup", "udevcookies"); strings.Contains(left, "0xd4d") {
		t.Errorf("cookies are left:\n%s", left)
	}
	_, err = ctl.Create("cookie", "") // for the cleanup
	must(t, nil, err)
}

// udevd answers the events of the kernel that have cookies until it is stopped, and
// says which it answered.
func udevd(t *testing.T, said chan<- string) (stop func()) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	must(t, nil, err)
	must(t, nil, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}))
	timeout := unix.NsecToTimeval(1e8)
	must(t, nil, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 16<<10)
		for {
			n, err := unix.Read(fd, buf)
			if err == nil {
				answer(t, buf[:n], said)
				continue
			}
			select {
			case <-over:
				return
			default:
			}
		}
	}()
	return func() {
		close(over)
		<-ended
		unix.Close(fd)
	}
}

// answer does what the rules do with one event.
func answer(t *testing.T, event []byte, said chan<- string) {
	env := map[string]string{}
	for field := range bytes.SplitSeq(event, []byte{0}) {
		name, value, _ := strings.Cut(string(field), "=")
		env[name] = value
	}
	cookie := env["DM_COOKIE"]
	if cookie == "" {
		return
	}
	flags, err := exec.Command("dmsetup", "udevflags", cookie).Output()
	if err != nil || env["ACTION"] != "remove" && !strings.Contains(string(flags), "DM_UDEV_PRIMARY_SOURCE_FLAG='1'") {
		t.Errorf("flags of cookie %s: %s, %v", cookie, flags, err)
	}
	hidden := ""
	if strings.Contains(string(flags), "DM_UDEV_DISABLE_DISK_RULES_FLAG='1'") && strings.Contains(string(flags), "DM_UDEV_DISABLE_OTHER_RULES_FLAG='1'") &&
		strings.Contains(string(flags), "DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG='1'") {
		hidden = " hidden"
	}
	said <- env["ACTION"] + hidden
	if out, err := exec.Command("dmsetup", "udevcomplete", cookie).CombinedOutput(); err != nil {
		t.Errorf("udevcomplete %s: %v\n%s", cookie, err, out)
	}
}
