package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// The contracts that the functional tests of thin-provisioning-tools hold its programs to
// are scripts in testdata/contracts: of every program, of those that read metadata, of
// those that write it, and of single ones. Each is run with our program, with that of 0.9
// and with that of 1.1, so that it says what they do and not what we believe. Where they
// differ, the line begins with [ours], [v0.9] or [v1.1], and a comment above says why.

// held is a program that contracts are about.
type held struct {
	kinds []string // folders of testdata/contracts
	needs []string // options without which it does nothing
	not09 bool     // 0.9 has no such program
}

func heldPrograms() map[string]held {
	return map[string]held{
		"era_check":      {kinds: []string{"every", "reads"}},
		"era_dump":       {kinds: []string{"every", "reads", "prints"}},
		"era_invalidate": {kinds: []string{"every", "reads", "prints"}, needs: []string{"--written-since", "1"}},
		"era_restore":    {kinds: []string{"every", "writes"}},
		"era_repair":     {kinds: []string{"every", "writes"}, not09: true},
		"thin_check":     {kinds: []string{"every", "reads"}},
		"thin_delta":     {kinds: []string{"every", "reads"}, needs: []string{"--thin1", "1", "--thin2", "2"}},
		"thin_dump":      {kinds: []string{"every", "reads", "prints"}},
		"thin_ls":        {kinds: []string{"every", "reads"}},
	}
}

func TestContractsAreAboutEveryName(t *testing.T) {
	for name := range dropIns() {
		if _, ok := heldPrograms()[name]; !ok {
			t.Errorf("no contract is about %s", name)
		}
	}
}

func TestContracts(t *testing.T) {
	eras, thins := prepareContracts(t), prepareThin(t)
	for _, release := range []string{"ours", "v0.9", "v1.1"} {
		for name, p := range heldPrograms() {
			if release == "v0.9" && p.not09 {
				continue
			}
			prepared := eras
			if strings.HasPrefix(name, "thin_") {
				prepared = thins
			}
			c := contracts{name, p, release, prepared, toolsOf(t, release)}
			t.Run(release+"/"+name, c.run)
		}
	}
}

// contracts is one program of one release, and what it is held to.
type contracts struct {
	name string
	held
	release  string
	prepared map[string][]byte // files by name
	dir      string            // with the programs; ours are found without
}

func (c contracts) run(t *testing.T) {
	t.Parallel()
	var files []string
	for _, kind := range append(c.kinds, c.name) {
		found, err := filepath.Glob(filepath.Join("testdata/contracts", kind, "*.txtar"))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	cmds := diskCommands()
	cmds["call"], cmds["read"] = c.call, c.read
	testscript.Run(t, testscript.Params{
		Files: files, Cmds: cmds, RequireExplicitExec: true,
		Setup: c.setup,
		Condition: func(cond string) (bool, error) {
			if slices.Contains([]string{"ours", "v0.9", "v1.1"}, cond) {
				return cond == c.release, nil
			}
			_, known := heldPrograms()[cond]
			if !known {
				return false, fmt.Errorf("neither a release nor a program: %s", cond)
			}
			return cond == c.name, nil
		},
	})
}

// setup lays out the files that scripts find, and the variables TOOL and CALL, the
// program alone and with what it needs, for shells.
func (c contracts) setup(env *testscript.Env) error {
	for name, b := range c.prepared {
		path := filepath.Join(env.WorkDir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return err
		}
		if name == "zeros" {
			if err := os.Truncate(path, 1<<20); err != nil {
				return err
			}
		}
		if err := os.Chtimes(path, longAgo(), longAgo()); err != nil {
			return err
		}
	}
	input := "good"
	if c.name == "era_restore" {
		input = "xml"
	}
	env.Setenv("INPUT", input)
	env.Setenv("TOOL", c.name)
	env.Setenv("CALL", strings.Join(append([]string{c.name}, c.needs...), " "))
	env.Setenv("TIDEMARK_STATE_DIR", filepath.Join(env.WorkDir, "state"))
	if c.dir != "" {
		env.Setenv("PATH", c.dir+":"+env.Getenv("PATH"))
	}
	return nil
}

// longAgo is when the prepared files were written last.
func longAgo() time.Time { return time.Unix(1<<20, 0) }

// call runs the program with options of the script, and those it needs, and checks how it
// ends: call ok|fails|crashes ARG…
//
// Ours and 0.9 fail with 1, 1.1 with 2 for a wrong command line and else 64. What a script
// found prepared is the same afterwards.
func (c contracts) call(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: call ok|fails|crashes ARG...")
	}
	line := slices.Concat([]string{"-k", "1", "20", c.name}, c.needs, args[1:])
	err := ts.Exec("timeout", line...)
	exit := &exec.ExitError{}
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	code := 0
	if err != nil {
		code = exit.ExitCode()
	}
	got := "crashes"
	switch {
	case code == 0:
		got = "ok"
	case code == 1, c.release == "v1.1" && (code == 2 || code == 64):
		got = "fails"
	}
	if got != args[0] {
		ts.Fatalf("%s (exit code %d), want: %s", got, code, args[0])
	}
	for name := range c.prepared {
		info, err := os.Stat(ts.MkAbs(name))
		if ts.Check(err); !info.ModTime().Equal(longAgo()) {
			ts.Fatalf("%s was written to", name)
		}
	}
}

// read is call with a file as the input of the program, and "output" as the output of
// one that writes: read ok|fails|crashes FILE ARG…
func (c contracts) read(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: read ok|fails|crashes FILE ARG...")
	}
	line := slices.Concat(args[:1], args[2:])
	if slices.Contains(c.kinds, "writes") {
		line = append(line, "-i", args[1], "-o", "output")
	} else {
		line = append(line, args[1])
	}
	c.call(ts, false, line)
}

// prepareContracts returns the files that every script finds: "good" metadata and its
// "xml", one with a "snap", a "held" metadata snapshot, one whose superblock has a "flip",
// a flipped bit, and one where it is "wiped"; "zeros" of 1 MiB, a "tiny" file and an "empty" one.
func prepareContracts(t *testing.T) map[string][]byte {
	unpack := func(name, file string) []byte {
		packed, err := os.ReadFile(filepath.Join(eraCases, name, file))
		if err != nil {
			t.Fatal(err)
		}
		b, err := unzstd(packed)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	files := damagedCopies(unpack("c07-bs128-unclean.clean", "meta.img.zst"))
	files["xml"] = unpack("c07-bs128-unclean.clean", "dump.xml.zst")
	files["snap"] = unpack("c06-bs1000-odd.live-snap", "meta.img.zst")
	files["bad"] = unpack("c16-corrupt.array-block0", "meta.img.zst")
	return files
}

func damagedCopies(good []byte) map[string][]byte {
	flip, wiped := bytes.Clone(good), bytes.Clone(good)
	flip[100] ^= 1
	clear(wiped[:512])
	return map[string][]byte{"good": good, "flip": flip, "wiped": wiped, "zeros": nil, "tiny": make([]byte, 1024), "empty": nil}
}

// prepareThin returns the same of dm-thin, made by thin_restore: devices 1 and 2, which
// share blocks, and 3 with more than a node of mappings. No tool makes a metadata
// snapshot; "bad" has a damaged mapping of device 3.
func prepareThin(t *testing.T) map[string][]byte {
	var xml strings.Builder
	xml.WriteString(`<superblock uuid="" time="1" transaction="2" flags="0" version="2" data_block_size="128" nr_data_blocks="8192">
  <device dev_id="1" mapped_blocks="300" transaction="0" creation_time="0" snap_time="1">
    <range_mapping origin_begin="0" data_begin="0" length="200" time="0"/>
    <range_mapping origin_begin="500" data_begin="300" length="100" time="0"/>
  </device>
  <device dev_id="2" mapped_blocks="201" transaction="1" creation_time="1" snap_time="1">
    <range_mapping origin_begin="0" data_begin="0" length="200" time="0"/>
    <single_mapping origin_block="600" data_block="700" time="1"/>
  </device>
  <device dev_id="3" mapped_blocks="2000" transaction="1" creation_time="1" snap_time="1">
`)
	for i := range 2000 {
		fmt.Fprintf(&xml, "    <single_mapping origin_block=\"%d\" data_block=\"%d\" time=\"1\"/>\n", 2*i, 1000+3*i)
	}
	xml.WriteString("  </device>\n</superblock>\n")
	dir := t.TempDir()
	in, out := filepath.Join(dir, "xml"), filepath.Join(dir, "meta")
	for path, b := range map[string][]byte{in: []byte(xml.String()), out: make([]byte, 256<<10)} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := exec.Command("/usr/sbin/thin_restore", "-i", in, "-o", out).CombinedOutput(); err != nil {
		t.Fatalf("thin_restore: %v: %s (needs the packages of scripts/setup)", err, b)
	}
	good, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	files := damagedCopies(good)
	files["xml"] = []byte(xml.String())
	return files
}

// toolsOf returns a folder with the programs of a release by their names.
func toolsOf(t *testing.T, release string) string {
	program := "/usr/sbin/pdata_tools"
	switch release {
	case "ours":
		return ""
	case "v1.1":
		program = tool11(t)
	}
	dir := t.TempDir()
	for name := range heldPrograms() {
		if err := os.Symlink(program, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// tool11 returns the program of 1.1, which is fetched when it is not there.
func tool11(t *testing.T) string {
	if dir := os.Getenv("ERA_TOOLS_1"); dir != "" {
		return filepath.Join(dir, "pdata_tools")
	}
	cmd := exec.Command("../../scripts/bench-tools")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("scripts/bench-tools: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// A difference that nobody explains is a mistake that nobody saw.
func TestContractsExplainDifferences(t *testing.T) {
	files, err := filepath.Glob("testdata/contracts/*/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no contracts: %v", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		explained := false
		for i, line := range strings.Split(string(b), "\n") {
			conditional := strings.HasPrefix(line, "[")
			if conditional && !explained {
				t.Errorf("%s:%d: %s: no comment of its paragraph says why", file, i+1, line)
			}
			explained = strings.HasPrefix(line, "#") || explained && line != ""
		}
	}
}
