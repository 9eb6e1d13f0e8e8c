package dm

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pretend is a udev that runs, with its rules, in a folder of the test.
func pretend(t *testing.T, patience time.Duration) udev {
	t.Helper()
	dir := t.TempDir()
	u := udev{control: filepath.Join(dir, "control"), rules: []string{filepath.Join(dir, "none"), filepath.Join(dir, "rule")}, patience: patience}
	for _, path := range []string{u.control, u.rules[1]} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return u.look()
}

// left is the value of a cookie's semaphore; false when there is none any more.
func left(k cookie) (uintptr, bool) {
	n, errno := semctl(k.id, semGetValue, 0)
	return n, errno == 0
}

func TestWaitEndsWhenUdevIsDone(t *testing.T) {
	k := pretend(t, time.Hour).begin()
	if k.key == 0 {
		t.Fatal("no cookie")
	}
	if n, ok := left(k); n != 1 || !ok {
		t.Fatalf("the semaphore is at %d", n)
	}
	if nr := k.eventNr(); nr&cookieMask == 0 || nr&^cookieMask != flagPrimary || cookieMagic|nr&cookieMask != k.key {
		t.Errorf("cookie %#x goes to the kernel as %#x", k.key, nr)
	}
	done := make(chan struct{})
	go func() { k.wait(true); close(done) }()
	if _, errno := semctl(k.id, semSetValue, 0); errno != 0 {
		t.Fatal(errno)
	}
	<-done
	if _, ok := left(k); ok {
		t.Error("the semaphore is still there")
	}
}

func TestWaitDoesNotDependOnUdev(t *testing.T) {
	k := pretend(t, time.Millisecond).begin()
	k.wait(true)
	if _, ok := left(k); ok {
		t.Error("udev does not answer: the semaphore is still there")
	}
	k = pretend(t, time.Hour).begin()
	k.wait(false)
	if _, ok := left(k); ok {
		t.Error("no event: the semaphore is still there")
	}
}

func TestNoCookieWithoutUdev(t *testing.T) {
	u := pretend(t, time.Hour)
	if err := os.Remove(u.rules[1]); err != nil {
		t.Fatal(err)
	}
	u.ruled = false
	u = u.look()
	if k := u.begin(); k.key != 0 || k.eventNr() != flagPrimary {
		t.Errorf("cookie %#x although no rule answers", k.key)
	}
	u.control += "x"
	if k := u.begin(); k.key != 0 {
		t.Errorf("cookie %#x although udev does not run", k.key)
	}
}

// A folder in the place of /dev, where the kernel's nodes are those given.
func fakeDev(t *testing.T, minors ...uint32) nodes {
	t.Helper()
	n := nodes{dev: t.TempDir()}
	for _, minor := range minors {
		mknod(t, filepath.Join(n.dev, kernelNode(Info{Minor: minor})), minor)
	}
	return n
}

const testMajor = 240 // for local use: no driver has it

func mknod(t *testing.T, path string, minor uint32) {
	t.Helper()
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(testMajor, minor))); err != nil {
		t.Fatalf("%v (run as root)", err)
	}
}

func TestNodesLeadToTheirDevice(t *testing.T) {
	for name, before := range map[string]func(t *testing.T, path string){
		"nothing there": func(*testing.T, string) {},
		"a stale link":  func(t *testing.T, path string) { link(t, "../dm-7", path) },
		"a stale node":  func(t *testing.T, path string) { mknod(t, path, 7) },
		"as it should":  func(t *testing.T, path string) { link(t, "../dm-3", path) },
	} {
		for _, minors := range [][]uint32{{3, 7}, {}} { // with the kernel's nodes, and without
			n := fakeDev(t, minors...)
			info := Info{Name: "a b", Major: testMajor, Minor: 3}
			if err := os.Mkdir(filepath.Join(n.dev, "mapper"), 0o755); err != nil {
				t.Fatal(err)
			}
			before(t, n.path(info))
			if err := n.make(info); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if !n.leads(filepath.Join(n.dev, "mapper", `a\x20b`), info.Dev()) {
				t.Errorf("%s: the node leads elsewhere", name)
			}
			if err := n.remove(info); err != nil || exists(n.path(info)) {
				t.Errorf("%s: the node is still there (%v)", name, err)
			}
		}
	}
}

func TestNodesOfOthersStay(t *testing.T) {
	n := fakeDev(t, 3, 7)
	info := Info{Name: "x", Major: testMajor, Minor: 3}
	if err := os.MkdirAll(n.path(info), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := n.make(info); err == nil || exists(n.path(info)+"~") {
		t.Errorf("a folder is in the way: %v", err)
	}
	if err := os.Remove(n.path(info)); err != nil {
		t.Fatal(err)
	}
	link(t, "../dm-7", n.path(info))
	if err := n.remove(info); err != nil || !exists(n.path(info)) {
		t.Errorf("the link of another device was removed (%v)", err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}
