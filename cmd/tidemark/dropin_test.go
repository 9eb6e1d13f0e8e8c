package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"tidemark/format/era"
)

// hidden are options of the names that choose nothing, and are not told of.
func hidden() []string { return []string{"io-engine", "verbose"} }

func TestHelpOfTheNamesListsTheOptionsThereAre(t *testing.T) {
	option := regexp.MustCompile(`[{|( ]--?[a-zA-Z][a-z0-9-]*`)
	for name, d := range dropIns() {
		var out, errs bytes.Buffer
		if code := called([]string{name, "--help"}, &out, &errs); code != 0 || errs.Len() > 0 {
			t.Fatalf("%s --help: exit code %d, %q", name, code, errs.String())
		}
		var told []string
		for _, o := range option.FindAllString(out.String(), -1) {
			told = append(told, o[1:])
		}
		flags := pflag.NewFlagSet(name, pflag.ContinueOnError)
		flags.BoolP("help", "h", false, "")
		flags.BoolP("version", "V", false, "")
		d.flags(flags)
		flags.VisitAll(func(f *pflag.Flag) {
			if _, no := f.Value.(refused); no {
				return
			}
			if !slices.Contains(told, "--"+f.Name) || f.Shorthand != "" && !slices.Contains(told, "-"+f.Shorthand) {
				t.Errorf("%s --help does not tell of --%s", name, f.Name)
			}
		})
		for _, o := range told {
			if flags.Lookup(strings.TrimLeft(o, "-")) == nil && (len(o) != 2 || flags.ShorthandLookup(o[1:]) == nil) {
				t.Errorf("%s --help tells of %s, which there is not", name, o)
			}
		}
		for _, h := range hidden() {
			if slices.Contains(told, "--"+h) && flags.Lookup(h) == nil {
				t.Errorf("%s --help tells of --%s, which does nothing", name, h)
			}
		}
	}
}

func TestOtherNamesKeepTheContractsOfAll(t *testing.T) {
	for name := range otherTools() {
		for _, c := range []struct {
			option string
			code   int
		}{{"-h", 0}, {"--help", 0}, {"-V", 0}, {"--version", 0}, {"--hedgehogs-only", 1}, {"", 1}} {
			var out, errs bytes.Buffer
			words := []string{name, c.option}
			if c.option == "" {
				words = words[:1]
			}
			if name == "dbdctl" && c.code != 0 {
				c.code = dbdctlFails
			}
			code := called(words, &out, &errs)
			told, quiet := &out, &errs
			if c.code != 0 && name != "dbdctl" { // which prints its usage to standard output, as dattobd's does
				told, quiet = &errs, &out
			}
			if code != c.code || !strings.Contains(told.String(), name) || quiet.Len() > 0 {
				t.Errorf("%s: exit code %d, printed %q and %q", words, code, out.String(), errs.String())
			}
		}
	}
}

// faulty runs the era programs on a file that something is wrong with.
type faulty struct {
	t                  *testing.T
	path, list, target string
	old                []byte // of the target
}

func newFaulty(t *testing.T, image []byte) *faulty {
	dir := t.TempDir()
	f := &faulty{t, filepath.Join(dir, "meta"), filepath.Join(dir, "list"), filepath.Join(dir, "target"), bytes.Repeat([]byte("old"), len(image)/3)}
	f.write(f.path, image)
	f.write(f.target, f.old)
	return f
}

func (f *faulty) write(path string, b []byte) {
	f.t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// run calls a program and returns its exit code, which is 0 or 1. A failure has a reason
// and leaves neither a list nor anything else in the target.
func (f *faulty) run(what string, words ...string) int {
	f.t.Helper()
	var out, errs bytes.Buffer
	code := called(words, &out, &errs)
	if code != 0 && code != 1 {
		f.t.Fatalf("%s: %v: exit code %d", what, words, code)
	}
	if code == 1 && errs.Len() == 0 {
		f.t.Errorf("%s: %v: failed without a word", what, words)
	}
	if _, err := os.Stat(f.list); code == 1 && err == nil {
		f.t.Errorf("%s: %v: failed, and left a list", what, words)
	}
	_ = os.Remove(f.list) // not always there
	now, err := os.ReadFile(f.target)
	if err != nil {
		f.t.Fatal(err)
	}
	if code == 1 && !bytes.Equal(now, f.old) {
		f.t.Errorf("%s: %v: failed, and wrote to the target", what, words)
		f.write(f.target, f.old)
	}
	return code
}

// programs are the command lines of all programs that read metadata of either kind.
func (f *faulty) programs(kind string) [][]string {
	if kind == "thin" {
		return [][]string{
			{"thin_check", f.path},
			{"thin_check", "--super-block-only", f.path},
			{"thin_check", "--metadata-snap", f.path},
			{"thin_dump", "-o", f.list, f.path},
			{"thin_dump", "--repair", "--skip-mappings", "-o", f.list, f.path},
			{"thin_delta", "--thin1", "1", "--thin2", "3", f.path},
			{"thin_ls", "-o", "DEV,EXCLUSIVE_BLOCKS", f.path},
		}
	}
	return [][]string{
		{"era_check", f.path},
		{"era_check", "--super-block-only", f.path},
		{"era_dump", "-o", f.list, f.path},
		{"era_dump", "--repair", "-o", f.list, f.path},
		{"era_dump", "--logical", "-o", f.list, f.path},
		{"era_invalidate", "--written-since", "1", "-o", f.list, f.path},
		{"era_invalidate", "--written-since", "1", "--metadata-snapshot", "-o", f.list, f.path},
		{"era_repair", "-i", f.path, "-o", f.target},
	}
}

func TestNamesRefuseASuperblockWithAByteChanged(t *testing.T) {
	t.Parallel()
	for kind, good := range map[string][]byte{"era": prepareContracts(t)["snap"], "thin": prepareThin(t)["good"]} {
		f := newFaulty(t, good)
		for at := range era.BlockSize {
			// Each of the first fields, of the others at least one byte, and where only the sum is wrong.
			if at >= 48 && at%7 != 0 || at >= 416 && at%97 != 0 {
				continue
			}
			damaged := bytes.Clone(good)
			damaged[at] ^= 1 << (at % 8)
			f.write(f.path, damaged)
			for _, words := range f.programs(kind) {
				if code := f.run(fmt.Sprintf("byte %d", at), words...); code != 1 {
					t.Errorf("byte %d: %v: exit code %d", at, words, code)
				}
			}
		}
	}
}

func TestNamesRefuseOrReadMetadataThatIsCutOff(t *testing.T) {
	t.Parallel()
	for kind, good := range map[string][]byte{"era": prepareContracts(t)["snap"], "thin": prepareThin(t)["good"]} {
		cutOff(t, kind, good)
	}
}

func cutOff(t *testing.T, kind string, good []byte) {
	f := newFaulty(t, good)
	var cuts []int
	for at := 0; at <= len(good); at += 3 * era.BlockSize { // blocks of every kind, in use and not
		cuts = append(cuts, at-1, at, at+512)
	}
	slices.Reverse(cuts)
	for _, cut := range append(cuts, 1, 511, 1024) {
		if cut < 0 || cut >= len(good) {
			continue
		}
		f.write(f.path, good[:cut])
		for _, words := range f.programs(kind) {
			code := f.run(fmt.Sprintf("%d bytes", cut), words...)
			if cut < era.BlockSize && code != 1 {
				t.Errorf("%d bytes: %v: exit code %d", cut, words, code)
			}
			if words[0] == "era_repair" && code == 0 {
				if f.run("repaired", "era_check", f.target) != 0 {
					t.Errorf("%d bytes: what was repaired is not sound", cut)
				}
				f.write(f.target, f.old)
			}
		}
	}
}

func TestRestoreRefusesXMLThatIsCutOff(t *testing.T) {
	t.Parallel()
	prepared := prepareContracts(t)
	xml := prepared["xml"]
	f := newFaulty(t, prepared["good"])
	for cut := 0; cut < len(bytes.TrimSpace(xml)); cut += 1 + cut/40 {
		f.write(f.path, xml[:cut])
		if code := f.run(fmt.Sprintf("%d bytes", cut), "era_restore", "-i", f.path, "-o", f.target); code != 1 {
			t.Fatalf("%d bytes: exit code %d", cut, code)
		}
	}
}
