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

// sendFiles sends the kernel's log and what the tests left in OutDir.
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
	return errors.Join(w.AddFS(os.DirFS(wire.OutDir)), w.Close(), port.Close())
}
