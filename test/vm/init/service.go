//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/test/vm/wire"
)

// serve does the job on the disk wire.JobDisk in a running system.
func serve() error {
	job, err := readJobDisk()
	if err != nil {
		return err
	}
	if err := modprobe(append([]string{"virtio_console"}, job.Modules...)); err != nil {
		return err
	}
	for _, dir := range []string{wire.OutDir, "/tmp"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	if err := work(job); err != nil || job.End == "" {
		return err
	}
	if job.End == wire.EndKexec {
		return exec.Command("systemctl", "--no-block", "--job-mode=replace-irreversibly", "start", "kexec.target").Run()
	}
	return os.WriteFile("/proc/sysrq-trigger", []byte(job.End), 0)
}

// readJobDisk waits for the disk and reads it.
func readJobDisk() (wire.Job, error) {
	const path = "/dev/disk/by-id/virtio-" + wire.JobDisk
	var job wire.Job
	var data []byte
	var err error
	for deadline := time.Now().Add(portWait); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if data, err = os.ReadFile(path); err == nil {
			break
		}
	}
	if err != nil {
		return job, err
	}
	return job, json.Unmarshal(bytes.TrimRight(data, "\x00"), &job)
}
