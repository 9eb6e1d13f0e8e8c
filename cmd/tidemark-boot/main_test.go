package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/boot"
)

// said runs a command line and returns the exit code and what was printed.
func said(t *testing.T, args ...string) (int, string) {
	t.Helper()
	var out bytes.Buffer
	code := run(t.Context(), args, &out, &out)
	return code, out.String()
}

// What a user is told to type in the shell of an initramfs is there.
func TestItKnowsTheCommandsOfTheRemedies(t *testing.T) {
	for _, e := range []boot.Entry{
		{Name: "root", Data: "/dev/disk/by-id/none", Meta: "/dev/disk/by-id/none-either", Stage: boot.StageInitramfs},
		{Name: "lin", Data: "/dev/disk/by-id/none", Stage: boot.StageInitramfs},
	} {
		found := 0
		for line := range strings.Lines(e.Remedy()) {
			command, ours := strings.CutPrefix(strings.TrimSpace(line), "tidemark ")
			if !ours {
				continue
			}
			found++
			if code, out := said(t, strings.Fields(command)...); code != exitError {
				t.Errorf("%s: ends with %d: %s", command, code, out)
			}
		}
		if found == 0 {
			t.Errorf("%s: no command in %s", e.Name, e.Remedy())
		}
	}
}

func TestCommandLines(t *testing.T) {
	file := filepath.Join(t.TempDir(), "metadata")
	if err := os.WriteFile(file, make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"", exitUsage, "boot open --instead-of DEVICE"},
		{"mirror /dev/a /dev/b", exitUsage, "is the part of tidemark that an initramfs has"},
		{"boot open --nothing", exitUsage, "bad command line"},
		{"boot open --wait 1", exitUsage, "bad command line"},
		{"boot open none --wait 1ms", exitError, "no such device in /etc/tidemark/era.conf"},
		{"boot open --instead-of /dev/nowhere", exitOK, ""},
		{"era create", exitUsage, "era create NAME --data DEVICE --meta DEVICE"},
		{"era create a b --data x --meta y", exitUsage, "bad command line"},
		{"era check", exitUsage, "era check METADATA"},
		{"era check " + file, exitError, "not dm-era metadata"},
	} {
		if code, out := said(t, strings.Fields(c.args)...); code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("%q: ends with %d, want %d: %s", c.args, code, c.code, out)
		}
	}
}
