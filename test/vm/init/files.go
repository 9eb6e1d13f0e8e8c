//go:build linux

package main

import (
	"archive/tar"
	"errors"
	"os"
	"os/exec"
	"path/filepath"

	"tidemark/test/vm/wire"
)

// sendFiles sends the kernel's log and what the tests left in OutDir, and waits until the host has
// them: a write to a port returns before QEMU has looked at it, and a guest that is off takes with
// it what QEMU did not look at.
func sendFiles() error {
	dmesg, err := exec.Command("dmesg").Output()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(wire.OutDir, "dmesg"), dmesg, 0o644); err != nil {
		return err
	}
	port, err := openPort(wire.PortFiles)
	if err != nil {
		return err
	}
	w := tar.NewWriter(port)
	if err := errors.Join(w.AddFS(os.DirFS(wire.OutDir)), w.Close()); err != nil {
		return errors.Join(err, port.Close())
	}
	_, err = port.Read(make([]byte, 1))
	return errors.Join(err, port.Close())
}
