//go:build linux

// Command init is the first process of a VM test's guest. It mounts the kernel's
// file systems, loads modules, runs one test binary with its output on a virtio
// serial port, sends back the files the tests left, and powers the guest off.
//
// What goes wrong before the port is open is on the console.
//
// In a guest with a system of its own it is a service of that system ("init service"):
// it finds its job on a disk, and leaves it to the system to end the guest.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/test/vm/wire"
)

// baseModules are what init itself needs, and the buses of the disks.
var baseModules = [...]string{
	"virtio_pci", "virtio_console", "virtio_blk", "virtio_scsi", "sd_mod", "nvme",
}

// portWait bounds how long the serial ports may take to appear.
const portWait = 30 * time.Second

func main() {
	log.SetFlags(0)
	log.SetPrefix("init: ")
	if len(os.Args) == 2 && os.Args[1] == "service" {
		if err := serve(); err != nil {
			log.Fatal(err)
		}
		return
	}
	if os.Getpid() != 1 {
		log.Fatal("this is a guest's first process; it does nothing elsewhere")
	}
	if err := run(); err != nil {
		log.Print(err)
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	if err := setUp(); err != nil {
		return err
	}
	job, err := readJob()
	if err != nil {
		return err
	}
	if err := modprobe(append(baseModules[:], job.Modules...)); err != nil {
		return err
	}
	if job.Scratch {
		if err := mountScratch(); err != nil {
			return err
		}
	}
	_, err = work(job)
	return err
}

// work runs the tests, and sends back what is left of them when no job follows. It returns their exit
// code.
func work(job wire.Job) (code int, err error) {
	port, err := openPort(wire.PortTest)
	if err != nil {
		return 0, err
	}
	code = runTests(job, port)
	if code == 0 && job.Next != nil {
		return 0, errors.Join(port.Close(), next(*job.Next))
	}
	if code != 0 {
		logBlocked()
	}
	if _, err := fmt.Fprintf(port, "\n%s%d\n", wire.ExitLine, code); err != nil {
		return code, err
	}
	return code, errors.Join(port.Close(), sendFiles())
}

// setUp gives the guest the mounts and links that programs expect.
func setUp() error {
	for _, m := range [...]struct{ kind, at, opts string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", ""},
		{"tmpfs", "/dev/shm", ""},
		{"devpts", "/dev/pts", ""},
		{"tmpfs", "/run", ""},
		{"tmpfs", "/tmp", ""},
		{"tmpfs", wire.OutDir, ""},
		{"bpf", "/sys/fs/bpf", ""},
		{"tracefs", "/sys/kernel/tracing", ""},
		{"debugfs", "/sys/kernel/debug", ""},
		{"cgroup2", "/sys/fs/cgroup", ""},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, m.opts); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	for _, dir := range []string{"/mnt", "/var/lib", "/var/cache", "/root", "/etc", wire.WorkDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return errors.Join(
		os.Symlink("/proc/self/mounts", "/etc/mtab"),
		os.Symlink("/run", "/var/run"),
		os.Symlink("/proc/self/fd", "/dev/fd"),
		unix.Sethostname([]byte("guest")),
		os.Setenv("PATH", "/sbin:/bin:/usr/sbin:/usr/bin:/rig/bin"),
		os.Setenv("HOME", "/root"),
		os.Setenv("DM_DISABLE_UDEV", "1"), // there is none: libdevmapper makes the nodes itself
	)
}

func readJob() (wire.Job, error) {
	var job wire.Job
	data, err := os.ReadFile(wire.JobFile)
	if err != nil {
		return job, err
	}
	if err := json.Unmarshal(data, &job); err != nil {
		return job, fmt.Errorf("%s: %w", wire.JobFile, err)
	}
	return job, nil
}

func modprobe(modules []string) error {
	out, err := exec.Command("modprobe", append([]string{"-a"}, modules...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("modprobe: %w: %s", err, out)
	}
	return nil
}

// mountScratch puts an ext4 on the scratch disk and mounts it on /tmp.
func mountScratch() error {
	files, err := filepath.Glob("/sys/block/*/serial")
	if err != nil {
		return err
	}
	for _, file := range files {
		serial, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(serial)) != wire.ScratchDisk {
			continue
		}
		disk := filepath.Join("/dev", filepath.Base(filepath.Dir(file)))
		if out, err := exec.Command("mkfs.ext4", "-q", disk).CombinedOutput(); err != nil {
			return fmt.Errorf("mkfs.ext4 %s: %w: %s", disk, err, out)
		}
		return unix.Mount(disk, "/tmp", "ext4", 0, "")
	}
	return fmt.Errorf("no disk %s", wire.ScratchDisk)
}

// runTests runs the test binary and returns its exit code; what it wrote is on port.
func runTests(job wire.Job, port *os.File) int {
	cmd := exec.Command(wire.Program, job.Args...)
	cmd.Dir = wire.WorkDir
	cmd.Env = append(append(os.Environ(), wire.Marker+"=1"), job.Env...)
	cmd.Stdout, cmd.Stderr = port, port
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		if exit.ExitCode() != 1 { // 1 means failed tests, which have said so
			fmt.Fprintf(port, "\ninit: %v\n", err)
		}
		return max(exit.ExitCode(), 1)
	}
	fmt.Fprintf(port, "\ninit: the test binary did not start: %v\n", err)
	return 127
}

// logBlocked has the kernel say on the console what every blocked task waits for: a
// test may have failed because it waited too long. It is no harm when it does not.
func logBlocked() {
	_ = os.WriteFile("/proc/sys/kernel/printk", []byte("8"), 0)
	_ = os.WriteFile("/proc/sysrq-trigger", []byte("w"), 0)
}

// openPort opens a serial port by its virtio name, when it has appeared.
func openPort(name string) (*os.File, error) {
	for deadline := time.Now().Add(portWait); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		entries, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, entry := range entries {
			have, err := os.ReadFile(entry)
			if err != nil || strings.TrimSpace(string(have)) != name {
				continue
			}
			node := filepath.Join("/dev", filepath.Base(filepath.Dir(entry)))
			return os.OpenFile(node, os.O_RDWR, 0)
		}
	}
	return nil, fmt.Errorf("serial port %s did not appear", name)
}
