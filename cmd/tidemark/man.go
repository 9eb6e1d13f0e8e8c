package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

func newMan() *cobra.Command {
	return command{
		use: "man DIR", short: "Write the man pages to a folder", hidden: true,
		example: "tidemark man man",
		args:    cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			for name, text := range manPages(cmd.Root()) {
				if err := os.WriteFile(filepath.Join(args[0], name), []byte(text), 0o644); err != nil {
					return err
				}
			}
			return nil
		},
	}.build()
}

// manPages returns the pages of cmd and all below it by file name.
func manPages(cmd *cobra.Command) map[string]string {
	pages := map[string]string{manName(cmd) + ".1": manPage(cmd)}
	for _, c := range visible(cmd) {
		maps.Copy(pages, manPages(c))
	}
	return pages
}

func manName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// manPage returns the page of one command, in the man macros of troff.
func manPage(cmd *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".\\\" Made by \"make man\" from the command tree; do not edit.\n")
	fmt.Fprintf(&b, ".TH %s 1 \"\" tidemark \"User Commands\"\n", strings.ToUpper(manName(cmd)))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff(manName(cmd)), roff(strings.ToLower(cmd.Short[:1])+cmd.Short[1:]))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n", roff(synopsis(cmd)))
	fmt.Fprintf(&b, ".SH EXAMPLES\n.nf\n%s.fi\n", roffLines(indent(cmd.Example)))
	fmt.Fprintf(&b, ".SH DESCRIPTION\n")
	for _, paragraph := range paragraphs(cmd) {
		fmt.Fprintf(&b, ".PP\n%s", roffLines(wrap(paragraph, "")+"\n"))
	}
	manList(&b, "COMMANDS", commandItems(cmd))
	manList(&b, "OPTIONS", append(flagItems(cmd.LocalNonPersistentFlags()), flagItems(globalFlags(cmd))...))
	manList(&b, "EXIT STATUS", exitItems(cmd))
	manList(&b, "ENVIRONMENT", environmentItems())
	manList(&b, "FILES", fileItems())
	fmt.Fprintf(&b, ".SH SEE ALSO\n%s\n", strings.Join(related(cmd), "\n"))
	return b.String()
}

func manList(b *strings.Builder, title string, items []item) {
	if len(items) == 0 {
		return
	}
	fmt.Fprintf(b, ".SH %s\n", title)
	for _, it := range items {
		fmt.Fprintf(b, ".TP\n.B %s\n%s", roff(it.term), roffLines(wrap(it.text, "")+"\n"))
	}
}

func environmentItems() []item {
	var items []item
	for _, v := range environment() {
		items = append(items, item{v[0], v[1]})
	}
	return items
}

// fileItems lists where the program keeps what outlives it.
func fileItems() []item {
	return []item{
		{"DST.tidemark", "The folder beside an image: its checksums, the mark from which the next run counts, and a journal while DST is written to. Keep it with DST."},
		{"/var/lib/tidemark", "The same for targets that are devices; which mirrors this machine knows; how jobs went (--state-dir)."},
		{"/run/tidemark", "What is tracked since the machine started (--run-dir); with it goes /sys/fs/bpf/tidemark."},
		{"/etc/tidemark/tidemark.toml", "The jobs."},
		{"/etc/tidemark/era.conf", `The era devices that are opened at boot, see "tidemark boot".`},
	}
}

// related returns references to the pages of parent, sisters and children.
func related(cmd *cobra.Command) []string {
	var refs []string
	add := func(c *cobra.Command) {
		if c != cmd {
			refs = append(refs, fmt.Sprintf(".BR %s (1)", roff(manName(c))))
		}
	}
	if parent := cmd.Parent(); parent != nil {
		add(parent)
		for _, c := range visible(parent) {
			add(c)
		}
	}
	for _, c := range visible(cmd) {
		add(c)
	}
	for i := range refs[:len(refs)-1] {
		refs[i] += " ,"
	}
	return refs
}

// roff escapes text for troff.
func roff(text string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...").Replace(text)
}

// roffLines escapes lines, of which none may look like a request.
func roffLines(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			b.WriteString(`\&`)
		}
		b.WriteString(roff(line))
	}
	return b.String()
}
