// Package pages reads the code blocks of Markdown pages, so that tests can run what the
// documentation tells its readers to type.
//
// A block stands between two lines of three back-quotes. The words after the first are
// its info: "sh" is run, "sh vm" is run where there is a whole machine for it, "text"
// is what a program prints, or what cannot be run.
package pages

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// Block is one block of code.
type Block struct {
	Info string // "sh", "sh vm", "text"
	Line int    // of the page, of the first line of code
	Code []string
}

// Blocks returns the blocks of a page in their order. A block that does not end is an
// error.
func Blocks(path string) ([]Block, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []Block
	var open *Block
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimRight(line, " \n")
		info, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && open == nil:
			open = &Block{Info: strings.TrimSpace(info), Line: n + 1}
		case fence:
			all, open = append(all, *open), nil
		case open != nil:
			open.Code = append(open.Code, line)
		}
	}
	if open != nil {
		return nil, fmt.Errorf("%s: the block of line %d does not end", path, open.Line-1)
	}
	return all, nil
}

var exits = regexp.MustCompile(`\s+# exit ([0-9]+)$`)

// Exit takes a line of shell apart that must fail, "tidemark bogus # exit 2". Of any
// other line the status is 0.
func Exit(line string) (command string, status int) {
	found := exits.FindStringSubmatch(line)
	if found == nil {
		return line, 0
	}
	status, err := strconv.Atoi(found[1])
	if err != nil {
		return line, 0
	}
	return strings.TrimSuffix(line, found[0]), status
}
