package bpf

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestInstallAndRemove(t *testing.T) {
	for _, f := range Probe() {
		t.Log(f)
		if f.Err != nil {
			t.Error(f.Name, f.Err)
		}
	}
	fs := t.TempDir()
	t.Cleanup(func() { unix.Unmount(fs, 0) })
	if err := MountFS(fs); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(fs, "tidemark", "v1")
	f, err := Install(dir)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	if err := f.Check(); err != nil {
		t.Fatal(err)
	}
	t.Log(f.Misses())
	f.Close()
	Remove(dir)
}
