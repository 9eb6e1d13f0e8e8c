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
	code, err := work(job)
	if err != nil || code != 0 || job.End == "" { // the system reboots
		return err
	}
	if job.End == wire.EndKexec || job.End == wire.EndSoft {
		return exec.Command("systemctl", "--no-block", "--job-mode=replace-irreversibly", "start", job.End).Run()
	}
	return os.WriteFile("/proc/sysrq-trigger", []byte(job.End), 0)
}

// next leaves the next job on the disk, where the same machine finds it later.
func next(job wire.Job) error {
	data, err := json.Marshal(job)
	if err != nil {
		return err
	}
	return os.WriteFile(jobPath, data, 0)
}

const jobPath = "/dev/disk/by-id/virtio-" + wire.JobDisk

// readJobDisk waits for the disk and reads it. Behind its job may be the rest of one that was longer.
func readJobDisk() (wire.Job, error) {
	var job wire.Job
	var data []byte
	var err error
	for deadline := time.Now().Add(portWait); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if data, err = os.ReadFile(jobPath); err == nil {
			break
		}
	}
	if err != nil {
		return job, err
	}
	return job, json.NewDecoder(bytes.NewReader(data)).Decode(&job)
}
