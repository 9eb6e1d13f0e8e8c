package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"tidemark/transfer"
)

// commands returns cmd and all commands below it that users are shown.
func commands(cmd *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{cmd}
	for _, c := range visible(cmd) {
		all = append(all, commands(c)...)
	}
	return all
}

func TestManPagesAreThoseOfTheCommandTree(t *testing.T) {
	const dir = "../../man"
	pages := manPages(newRoot())
	for name, text := range pages {
		committed, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(committed) != text {
			t.Errorf("%s is stale (%v): run make man", name, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, ok := pages[e.Name()]; !ok {
			t.Errorf("%s is the page of no command", e.Name())
		}
	}
}

func TestCompletionsAreThoseOfTheCommandTree(t *testing.T) {
	for shell, file := range map[string]string{"bash": "tidemark.bash", "zsh": "_tidemark", "fish": "tidemark.fish"} {
		var out bytes.Buffer
		if code := run([]string{"completion", shell}, &out, os.Stderr); code != 0 {
			t.Fatalf("completion %s: exit code %d", shell, code)
		}
		committed, err := os.ReadFile(filepath.Join("../../completions", file))
		if err != nil || !bytes.Equal(committed, out.Bytes()) {
			t.Errorf("%s is stale (%v): run make man", file, err)
		}
	}
}

func TestManPagesOpenWithAnExampleAndListExitCodes(t *testing.T) {
	for _, cmd := range commands(newRoot()) {
		page := manPage(cmd)
		sections := strings.Split(page, "\n.SH ")
		if len(sections) < 3 || !strings.HasPrefix(sections[2], "EXAMPLES\n.nf\n  ") || !strings.Contains(sections[2], "tidemark") {
			t.Errorf("%s does not open with an example", cmd.CommandPath())
		}
		for _, code := range exitsOf(cmd) {
			if code.meaning() == "" {
				t.Errorf("%s: exit code %d means nothing", cmd.CommandPath(), code)
			}
		}
		if !strings.Contains(page, "\n.SH EXIT STATUS\n") {
			t.Errorf("%s lists no exit codes", cmd.CommandPath())
		}
	}
}

func TestExamplesAreCommandLinesThatParse(t *testing.T) {
	for _, cmd := range commands(newRoot()) {
		ours := 0
		for line := range strings.Lines(cmd.Example) {
			for _, words := range commandsIn(line) {
				ours++
				if err := parses(words); err != nil {
					t.Errorf("%s: %q: %v", cmd.CommandPath(), line, err)
				}
			}
		}
		if ours == 0 {
			t.Errorf("%s: no example calls tidemark", cmd.CommandPath())
		}
	}
}

// commandsIn returns the arguments of each call of tidemark in a line of shell: among
// other commands, in a pipe, behind ssh.
func commandsIn(line string) [][]string {
	line, _, _ = strings.Cut(line, "#")
	var calls [][]string
	for _, command := range strings.FieldsFunc(line, func(r rune) bool { return r == '|' || r == ';' }) {
		words := strings.Fields(command)
		if at := slices.Index(words, "tidemark"); at >= 0 {
			calls = append(calls, words[at+1:])
		}
	}
	return calls
}

// parses does what executing does short of running the command.
func parses(args []string) error {
	cmd, rest, err := newRoot().Find(args)
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}

func TestEveryOptionIsDescribed(t *testing.T) {
	for _, cmd := range commands(newRoot()) {
		for _, it := range append(flagItems(cmd.LocalFlags()), commandItems(cmd)...) {
			if len(it.text) < 5 {
				t.Errorf("%s: %s: %q says nothing", cmd.CommandPath(), it.term, it.text)
			}
		}
	}
}

func TestEveryClassOfErrorHasACodeThatIsDocumented(t *testing.T) {
	listed := map[exitCode]bool{}
	for _, cmd := range commands(newRoot()) {
		for _, code := range exitsOf(cmd) {
			listed[code] = true
		}
	}
	for _, c := range classes() {
		if !listed[c.code] {
			t.Errorf("%v ends with %d, which no command lists", c.err, c.code)
		}
		if got := classify(context.Background(), c.err); got.code != c.code || got.name != c.name {
			t.Errorf("%v is %s and ends with %d, want %s and %d", c.err, got.name, got.code, c.name, c.code)
		}
	}
}

// classTable begins the part of docs/manual/exit-codes.md that is made from the table of
// classes.
const classTable = "<!-- made from the table of classes: UPDATE=1 go test ./cmd/tidemark -run TestTheManualListsEveryClass -->\n"

func TestTheManualListsEveryClassOfErrorOnce(t *testing.T) {
	const page = "../../docs/manual/exit-codes.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, _, ok := strings.Cut(string(text), classTable)
	if !ok {
		t.Fatalf("%s: %q is missing", page, classTable)
	}
	var b strings.Builder
	b.WriteString(before + classTable + "\n| code | exit | error |\n|---|---|---|\n")
	seen := map[string]bool{"usage": true, "failed": true, "hung-up": true, "interrupted": true, "terminated": true, "ok": true, transfer.Planned: true}
	for _, c := range classes() {
		if seen[c.name] || c.name == "" {
			t.Errorf("%v: the name %q is another's as well", c.err, c.name)
		}
		seen[c.name] = true
		fmt.Fprintf(&b, "| `%s` | %d | %v |\n", c.name, c.code, c.err)
	}
	if b.String() == string(text) {
		return
	}
	if os.Getenv("UPDATE") == "" {
		t.Fatalf("%s is not the table of classes: see the line above its table", page)
	}
	if err := os.WriteFile(page, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// The codes themselves are told once, by exitCode.meaning.
func TestTheManualListsEveryExitCode(t *testing.T) {
	text, err := os.ReadFile("../../docs/manual/exit-codes.md")
	if err != nil {
		t.Fatal(err)
	}
	for c := range exitCode(256) {
		if row := fmt.Sprintf("| %d | %s |\n", c, c.meaning()); c.meaning() != "" && !strings.Contains(string(text), row) {
			t.Errorf("a row is missing: %s", row)
		}
	}
}
