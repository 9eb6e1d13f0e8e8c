package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestEveryCheckSaysWhatFollows(t *testing.T) {
	rep := Run(Options{})
	var names []string
	for _, c := range rep.Checks {
		names = append(names, c.Name)
		if c.Detail == "" || c.Consequence == "" {
			t.Errorf("%+v leaves the user alone", c)
		}
	}
	const want = "btf tp_btf bpffs run folder capabilities freeze loop device-mapper ublk nbd"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("checks %q, want %q", got, want)
	}
}

// The manual names the kernels that doctor does.
func TestTheManualNamesTheTestedKernels(t *testing.T) {
	page, err := os.ReadFile("../../../../docs/manual/kernels.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, series := range tested() {
		if !strings.Contains(string(page), "Linux "+series+" ") {
			t.Errorf("it does not name Linux %s", series)
		}
	}
}

func TestRootOnAKernelWithBTFCanMirrorLive(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	if _, err := os.Stat(btfFile); err != nil {
		t.Fatalf("needs a kernel with CONFIG_DEBUG_INFO_BTF: %v", err)
	}
	if rep := Run(Options{}); rep.Live != Incremental {
		t.Errorf("%+v", rep)
	}
}

func TestCapabilitiesAreReadFromStatus(t *testing.T) {
	tests := map[string]struct{ status, says string }{
		"all":      {"CapPrm:\t0\nCapEff:\t000001ffffffffff\n", ""},
		"enough":   {"CapEff:\t0000000000200000\n", ""},
		"none":     {"CapEff:\t0000000000000000\n", "CAP_SYS_ADMIN is missing"},
		"bpf only": {"CapEff:\t000000c000000000\n", "CAP_SYS_ADMIN is missing"},
		"no line":  {"Name:\tx\n", "no line CapEff"},
		"bad line": {"CapEff:\tx\n", "invalid syntax"},
	}
	for name, tt := range tests {
		path := filepath.Join(t.TempDir(), "status")
		if err := os.WriteFile(path, []byte(tt.status), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := tryCapabilities(path)
		if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %q", name, err, tt.says)
		}
	}
}

func TestAMissingBPFFSFallsToScan(t *testing.T) {
	rep := Run(Options{BPFFS: filepath.Join(t.TempDir(), "nowhere")})
	if rep.Live == Incremental {
		t.Errorf("%+v", rep)
	}
}

func TestWhoIsNotRootIsToldSoAndNoMore(t *testing.T) {
	for _, err := range []error{
		fmt.Errorf("load program: %w (MEMLOCK may be too low, consider rlimit.RemoveMemlock)", unix.EPERM),
		&os.PathError{Op: "mkdir", Path: "/dev/mapper", Err: unix.EACCES},
	} {
		if got := detailOf(err, 1000); !strings.HasPrefix(got, "needs root (") || strings.Contains(got, "MEMLOCK") || strings.Contains(got, "mkdir") {
			t.Errorf("%v: %s", err, got)
		}
	}
	if got := detailOf(unix.EPERM, 0); got != unix.EPERM.Error() {
		t.Errorf("root is told %q", got)
	}
	if got := detailOf(unix.ENOENT, 1000); got != unix.ENOENT.Error() {
		t.Errorf("a file that is missing: %s", got)
	}
}
