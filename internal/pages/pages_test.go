package pages

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestAPageIsTakenApart(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.md")
	text := "# Page\n\n```sh\na\nb # exit 6\n```\ntext\n```sh vm\n```\n"
	if err := os.WriteFile(page, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	blocks, err := Blocks(page)
	if err != nil || len(blocks) != 2 {
		t.Fatalf("%v, %v", blocks, err)
	}
	if b := blocks[0]; b.Info != "sh" || b.Line != 4 || strings.Join(b.Code, ";") != "a;b # exit 6" {
		t.Errorf("%+v", b)
	}
	if b := blocks[1]; b.Info != "sh vm" || len(b.Code) != 0 {
		t.Errorf("%+v", b)
	}
	if command, status := Exit("b # exit 6"); command != "b" || status != 6 {
		t.Errorf("%q, %d", command, status)
	}
	if command, status := Exit("b # exits"); command != "b # exits" || status != 0 {
		t.Errorf("%q, %d", command, status)
	}
	if err := os.WriteFile(page, []byte("```sh\na\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Blocks(page); err == nil {
		t.Error("a block without end is taken")
	}
}

var link = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)

func TestLinksLeadSomewhereAndTheIndexOfTheManualHasAllPages(t *testing.T) {
	found, err := filepath.Glob("../../docs/manual/*.md")
	if err != nil || len(found) == 0 {
		t.Fatalf("no pages in docs/manual: %v", err)
	}
	indexed := map[string]bool{"README.md": true}
	for _, page := range append(found, "../../README.md", "../../docs/architecture.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s: %s leads nowhere", page, m[1])
			}
			if page == "../../docs/manual/README.md" {
				indexed[m[1]] = true
			}
		}
	}
	for _, page := range found {
		if !indexed[filepath.Base(page)] {
			t.Errorf("%s is not in the index, docs/manual/README.md", page)
		}
	}
}
