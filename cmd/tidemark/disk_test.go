package main

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// diskCommands are what scripts do with real disks. What they set up is undone
// when the script ends, however it ends.
func diskCommands() map[string]func(ts *testscript.TestScript, neg bool, args []string) {
	return map[string]func(ts *testscript.TestScript, neg bool, args []string){
		"disk": disk, "undisk": undisk, "mkfs": mkfs, "mount": mount, "umount": umount, "envfile": envFile,
	}
}

// ownBPFFS gives a script a place for tracking of its own, which tidemark mounts
// when it first needs it.
func ownBPFFS(env *testscript.Env) error {
	dir := filepath.Join(env.WorkDir, "bpf")
	env.Setenv("TIDEMARK_BPFFS", dir)
	env.Defer(func() { _ = exec.Command("umount", dir).Run() }) // most scripts never mount it
	return os.Mkdir(dir, 0o755)
}

// tool runs a program of the system and returns what it printed.
func tool(ts *testscript.TestScript, name string, args ...string) string {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		ts.Fatalf("%s %s: %v: %s (needs root and the packages of scripts/setup)", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// disk attaches a loop device and puts its path in the variable NAME:
// disk NAME SIZE makes the file NAME.raw, disk NAME FILE takes an existing one.
func disk(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: disk NAME SIZE|FILE")
	}
	file := ts.MkAbs(args[1])
	if _, err := os.Stat(file); err != nil {
		file = ts.MkAbs(args[0] + ".raw")
		tool(ts, "truncate", "-s", args[1], file)
	}
	dev := tool(ts, "losetup", "--find", "--show", file)
	ts.Setenv(args[0], dev)
	ts.Defer(func() {
		if backing(dev) == file {
			_ = ts.Exec("tidemark", "track", "stop", dev) // it is not always tracked
			tool(ts, "losetup", "-d", dev)
		}
	})
}

func backing(dev string) string {
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(dev), "loop/backing_file"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// undisk detaches the device of the variable NAME: undisk NAME.
func undisk(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: undisk NAME")
	}
	dev := ts.Getenv(args[0])
	tool(ts, "losetup", "-d", dev)
	// The kernel detaches it when the last program that looks at it has closed it.
	backing := filepath.Join("/sys/block", filepath.Base(dev), "loop/backing_file")
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(backing); errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
	ts.Fatalf("%s is still attached", dev)
}

// mkfs makes a filesystem: mkfs DEVICE TYPE.
func mkfs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mkfs DEVICE TYPE")
	}
	options := []string{"-q"}
	if args[1] == "ext4" {
		// Nothing is to be written in the background while a script counts.
		options = append(options, "-E", "lazy_itable_init=0,lazy_journal_init=0")
	}
	tool(ts, "mkfs."+args[1], append(options, args[0])...)
}

// mount makes a folder and mounts a device on it: mount DEVICE FOLDER.
func mount(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mount DEVICE FOLDER")
	}
	dir := ts.MkAbs(args[1])
	ts.Check(os.MkdirAll(dir, 0o755))
	tool(ts, "mount", args[0], dir)
	ts.Defer(func() { _ = exec.Command("umount", dir).Run() }) // the script may have done it
}

// umount unmounts a folder: umount FOLDER.
func umount(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: umount FOLDER")
	}
	tool(ts, "umount", ts.MkAbs(args[0]))
}

// envFile sets a variable to what a file holds: envfile NAME FILE.
func envFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: envfile NAME FILE")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile(args[1])))
}
