package vm

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var thinTests = flag.String("thin-tests", "", "the `pattern` of the tests of thin pools to run in guests")

// What a kernel's pool leaves is read on the host as both releases of thin-provisioning-tools read
// it.
func TestThinPool(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/thin")
	command := BuildCommand(t, "tidemark/cmd/tidemark")
	for _, kernel := range forMapper() {
		t.Run(string(kernel), func(t *testing.T) {
			t.Parallel()
			meta := NewDisk(t, "meta", 8<<20)
			skip := kernel.skipped(
				"^TestMirrorsOfABusyThinVolume$/^LVM$|^TestThinRunsThatAreKilled$/^plain$|^TestThinMarksThatAreLost$",
				"^TestMirrorsOfABusyThinVolume$/^plain$|^TestThinRunsThatAreKilled$/^LVM$|^TestThinVolumesAreOfOneInstant$/^plain$")
			if *thinTests != "" {
				skip = ""
			}
			r := Run(t, Config{
				Kernel: kernel, Timeout: busyTimeout, Modules: []string{"dm-thin-pool"}, Tests: *thinTests, Skip: skip,
				Programs: append([]string{"fio", "fstrim", "e2fsck", "thin_check"}, lvm2...),
				Files:    map[string]string{"/bin/tidemark": command},
				Disks:    []Disk{NewDisk(t, "data", 256<<20), meta, NewDisk(t, "origin", 32<<20)},
			}, program)
			t.Logf("boot %v, all %v, %d tests", r.Boot, r.Total, r.Tests)
			if *thinTests != "" {
				return // what the others leave is not there
			}
			compareThin(t, command, meta.Path)
		})
	}
}

// compareThin holds the commands against the tools of 0.9, which are installed, and of 1.1.
func compareThin(t *testing.T, command, meta string) {
	t.Helper()
	newer := strings.TrimSpace(printed(t, "../../scripts/bench-tools"))
	restored(t, command, newer, meta)
	names := t.TempDir()
	for _, args := range [][]string{
		{"thin_dump"},
		{"thin_dump", "-m"},
		{"thin_dump", "-f", "human_readable", "--dev-id", "7"},
		{"thin_delta", "--snap1", "1", "--snap2", "12"},
		{"thin_delta", "--snap1", "12", "--snap2", "2", "--verbose"},
		{"thin_delta", "--snap1", "0", "--snap2", "100"},
		{"thin_delta", "--snap1", "6", "--snap2", "6", "--verbose"},
		{"thin_ls"},
		{"thin_ls", "-m", "-o", "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BYTES,MAPPED,TRANSACTION"},
		{"thin_check"},
		{"thin_check", "-m"},
	} {
		name := filepath.Join(names, args[0])
		if err := os.Symlink(command, name); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
		rest := append(args[1:], meta)
		got := printed(t, name, rest...)
		others := []string{printed(t, "/usr/sbin/"+args[0], rest...)}
		// 1.1 joins runs of --verbose whose data does not follow one another; it writes once, and refers
		// to, what devices share in XML, which 0.9 does not read.
		if !slices.Contains(args, "--verbose") && (args[0] != "thin_dump" || slices.Contains(args, "human_readable")) {
			others = append(others, printed(t, newer, append([]string{args[0]}, rest...)...))
		}
		for _, other := range others {
			// With -m the tools print 0 data blocks. 1.1 leaves out flags="0", metadata_snap and the last line's end, prints one block as a run in the
			// text for people, and 0 as 0b; the free blocks of 0.9 are wrong.
			if a, b := normal(args[0], got), normal(args[0], other); a != b {
				t.Errorf("%v:\n%.2000s\nwant\n%.2000s", args, a, b)
			}
		}
	}
}

var heldAt = regexp.MustCompile(` metadata_snap="[0-9]+"`)

// dataBlocks is what is said of the disk "data".
const dataBlocks = `nr_data_blocks="4096"`

// restored compares the XML of 1.1 by what it makes.
func restored(t *testing.T, command, newer, meta string) {
	t.Helper()
	xml, image := filepath.Join(t.TempDir(), "xml"), filepath.Join(t.TempDir(), "meta")
	if err := os.WriteFile(image, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	printed(t, newer, "thin_dump", "-o", xml, meta)
	printed(t, newer, "thin_restore", "-q", "-i", xml, "-o", image)
	if a, b := printed(t, command, "thin", "dump", meta), printed(t, command, "thin", "dump", image); a != b {
		t.Errorf("what 1.1 dumps is\n%.2000s\nwant\n%.2000s", b, a)
	}
	printed(t, command, "thin", "check", image)
}

func normal(tool, s string) string {
	if tool == "thin_check" {
		first, _, _ := strings.Cut(s, "\n")
		return first
	}
	var lines []string
	s = heldAt.ReplaceAllString(s, "")
	s = strings.NewReplacer(` flags="0"`, "", `nr_data_blocks="0"`, dataBlocks).Replace(s)
	for line := range strings.Lines(s) {
		line = strings.TrimSpace(line)
		if from, to, ok := strings.Cut(line, " -> "); ok && strings.HasPrefix(from, "(") {
			if a, b, _ := strings.Cut(strings.Trim(from, "()"), ".."); a == b {
				at, time, _ := strings.Cut(to, ", ")
				at, _, _ = strings.Cut(strings.Trim(at, "()"), "..")
				line = a + " -> " + at + ", " + time
			}
		}
		for i, field := range strings.Fields(line) {
			if field == "0b" {
				field = "0"
			}
			if i > 0 {
				field = " " + field
			}
			lines = append(lines, field)
		}
		lines = append(lines, "\n")
	}
	return strings.TrimSpace(strings.Join(lines, ""))
}

// printed runs a program and returns what it prints.
func printed(t *testing.T, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s%s", program, args, err, out, errs.String())
	}
	return string(out)
}
