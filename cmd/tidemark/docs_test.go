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

	"tidemark/internal/pages"
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

func TestManPagesOpenWithSynopsisAndExampleAndListExitCodesAndFiles(t *testing.T) {
	for _, cmd := range commands(newRoot()) {
		page := manPage(cmd)
		sections := strings.Split(page, "\n.SH ")
		if len(sections) < 4 || !strings.HasPrefix(sections[2], "SYNOPSIS\n") ||
			!strings.HasPrefix(sections[3], "EXAMPLES\n.nf\n  ") || !strings.Contains(sections[3], "tidemark") {
			t.Errorf("%s does not open with its synopsis and an example", cmd.CommandPath())
		}
		for _, code := range exitsOf(cmd) {
			if code.meaning() == "" {
				t.Errorf("%s: exit code %d means nothing", cmd.CommandPath(), code)
			}
		}
		for _, section := range []string{"EXIT STATUS", "FILES"} {
			if !strings.Contains(page, "\n.SH "+section+"\n") {
				t.Errorf("%s has no section %s", cmd.CommandPath(), section)
			}
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

func TestCommandLinesOfTheManualParse(t *testing.T) {
	found, err := filepath.Glob("../../docs/manual/*.md")
	if err != nil || len(found) == 0 {
		t.Fatalf("no pages in docs/manual: %v", err)
	}
	for _, page := range append(found, "../../README.md") {
		blocks, err := pages.Blocks(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range blocks {
			if b.Info != "sh" && b.Info != "sh vm" {
				continue
			}
			for i, line := range b.Code {
				line, status := pages.Exit(line)
				for _, words := range commandsIn(line) {
					if err := parses(words); err != nil && status != int(exitUsage) {
						t.Errorf("%s, line %d: %q: %v", page, b.Line+i, line, err)
					}
				}
			}
		}
	}
}

// commandsIn returns the arguments of each call of tidemark in a line of shell: among
// other commands, in a pipe, behind sudo or ssh.
func commandsIn(line string) [][]string {
	var calls [][]string
	for _, words := range simpleCommands(line) {
		if at := slices.IndexFunc(words, func(w string) bool { return w == "tidemark" || w == "bin/tidemark" }); at >= 0 {
			calls = append(calls, words[at+1:])
		}
	}
	return calls
}

// simpleCommands takes a line of shell apart into commands and those into words, as far
// as examples need it: quotes, comments, what stands between commands, redirections.
func simpleCommands(line string) [][]string {
	all := [][]string{nil}
	var quote rune
	word, begun := "", false
	end := func() {
		if last := len(all) - 1; begun && !strings.HasPrefix(word, ">") {
			all[last] = append(all[last], word)
		}
		word, begun = "", false
	}
	for _, r := range line + " " {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word += string(r)
		case r == '\'' || r == '"':
			quote, begun = r, true
		case strings.ContainsRune("|;&()`", r):
			end()
			all = append(all, nil)
		case r == '#' && !begun:
			return all
		case r == ' ' || r == '\n':
			end()
		default:
			word, begun = word+string(r), true
		}
	}
	return all
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
	if cmd.HasSubCommands() {
		return cmd.RunE(cmd, cmd.Flags().Args())
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}

func TestAWrongNumberOfArgumentsIsSaidInWords(t *testing.T) {
	for _, cmd := range commands(newRoot()) {
		if cmd.HasSubCommands() {
			continue
		}
		for n := range 5 {
			err := cmd.ValidateArgs(slices.Repeat([]string{"x"}, n))
			if err != nil && (strings.Contains(err.Error(), "arg(s)") || strings.Contains(err.Error(), "unknown command")) {
				t.Errorf("%s with %d arguments: %v", cmd.CommandPath(), n, err)
			}
		}
	}
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
