package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newHelp makes "tidemark help COMMAND", for who expects it; --help is in the manual.
func newHelp() *cobra.Command {
	cmd := command{
		use: "help [COMMAND]...", short: "Show the help of a command", hidden: true,
		example: "tidemark help mirror",
		args:    cobra.ArbitraryArgs,
		run: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			switch {
			case err != nil:
				return usageError{err}
			case len(rest) > 0 && about.HasSubCommands():
				return refuseGroup(about, rest)
			case len(rest) > 0:
				return usagef("%q has no commands", about.CommandPath())
			}
			fmt.Fprint(cmd.OutOrStdout(), helpText(about))
			return nil
		},
	}.build()
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if about, rest, err := cmd.Root().Find(args); err == nil && len(rest) == 0 {
			return childNames(about), cobra.ShellCompDirectiveNoFileComp
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return cmd
}

// strayHelp is an error when the help of a command is asked for that does not exist,
// which cobra takes for a question about the group.
func strayHelp(cmd *cobra.Command) error {
	asked, err := cmd.Flags().GetBool("help")
	if args := cmd.Flags().Args(); err == nil && asked && cmd.HasSubCommands() && len(args) > 0 {
		return refuseGroup(cmd, args)
	}
	return nil
}

// item is one entry of a list: an option, a command, an exit code.
type item struct{ term, text string }

const helpWidth = 80

// helpText returns what --help prints.
func helpText(cmd *cobra.Command) string {
	var b strings.Builder
	for _, paragraph := range paragraphs(cmd) {
		b.WriteString(wrap(paragraph, "") + "\n\n")
	}
	fmt.Fprintf(&b, "Usage:\n  %s\n", synopsis(cmd))
	if cmd.Example != "" {
		fmt.Fprintf(&b, "\nExamples:\n%s", indent(cmd.Example))
	}
	helpList(&b, "Commands", commandItems(cmd))
	helpList(&b, "Options", flagItems(cmd.LocalNonPersistentFlags()))
	helpList(&b, "Global options", flagItems(globalFlags(cmd)))
	helpList(&b, "Exit codes", exitItems(cmd))
	return b.String()
}

func helpList(b *strings.Builder, title string, items []item) {
	if len(items) == 0 {
		return
	}
	width := 0
	for _, it := range items {
		width = max(width, len(it.term))
	}
	width = min(width, 24)
	fmt.Fprintf(b, "\n%s:\n", title)
	hang := strings.Repeat(" ", width+4)
	for _, it := range items {
		text := strings.TrimLeft(wrap(it.text, hang), " ")
		if len(it.term) > width {
			fmt.Fprintf(b, "  %s\n%s%s\n", it.term, hang, text)
			continue
		}
		fmt.Fprintf(b, "  %-*s  %s\n", width, it.term, text)
	}
}

// wrap breaks text into lines of helpWidth at most, each after prefix.
func wrap(text, prefix string) string {
	var lines []string
	line := prefix
	for word := range strings.FieldsSeq(text) {
		if len(line) > len(prefix) && len(line)+1+len(word) > helpWidth {
			lines = append(lines, line)
			line = prefix
		}
		if len(line) > len(prefix) {
			line += " "
		}
		line += word
	}
	return strings.Join(append(lines, line), "\n")
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("  " + strings.TrimSuffix(line, "\n") + "\n")
	}
	return b.String()
}

// paragraphs returns the description, or the summary where there is none.
func paragraphs(cmd *cobra.Command) []string {
	if cmd.Long == "" {
		return []string{cmd.Short + "."}
	}
	return strings.Split(cmd.Long, "\n\n")
}

func synopsis(cmd *cobra.Command) string {
	if cmd.HasAvailableSubCommands() {
		return cmd.CommandPath() + " COMMAND"
	}
	_, args, _ := strings.Cut(cmd.Use, " ")
	return strings.TrimSpace(cmd.CommandPath() + " [OPTION]... " + args)
}

func commandItems(cmd *cobra.Command) []item {
	var items []item
	for _, c := range visible(cmd) {
		items = append(items, item{c.Name(), c.Short + "."})
	}
	return items
}

// globalFlags returns the options that all commands share, and those that the commands of
// a group do.
func globalFlags(cmd *cobra.Command) *pflag.FlagSet {
	all := pflag.NewFlagSet(cmd.Name(), pflag.ContinueOnError)
	all.AddFlagSet(cmd.PersistentFlags())
	all.AddFlagSet(cmd.InheritedFlags())
	return all
}

// valueKey is what pflag.Flag.Annotations has the name of an option's value under, "" for
// one without.
const valueKey = "value"

// nameValues takes the name of each option's value, which pflag has between back-quotes,
// out of its description: completion shows that as it is.
func nameValues(cmd *cobra.Command) {
	take := func(f *pflag.Flag) {
		if f.Annotations[valueKey] == nil {
			name, usage := pflag.UnquoteUsage(f)
			if f.Usage = usage; f.Annotations == nil {
				f.Annotations = map[string][]string{}
			}
			f.Annotations[valueKey] = []string{name}
		}
	}
	cmd.Flags().VisitAll(take)
	cmd.PersistentFlags().VisitAll(take)
	for _, c := range cmd.Commands() {
		nameValues(c)
	}
}

func flagItems(flags *pflag.FlagSet) []item {
	var items []item
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, text := strings.Join(f.Annotations[valueKey], ""), f.Usage
		term := "--" + f.Name
		if f.Shorthand != "" {
			term = "-" + f.Shorthand + ", " + term
		}
		if value != "" {
			term += " " + placeholder(value)
		}
		switch f.DefValue {
		case "", "false", "0", "[]", "0s":
		default:
			text += " (default " + f.DefValue + ")"
		}
		items = append(items, item{term, text})
	})
	return items
}

// placeholder returns how the value of a flag is shown: a name in capitals, or
// the values that there are as they are.
func placeholder(value string) string {
	if strings.Contains(value, "|") {
		return value
	}
	return strings.ToUpper(value)
}

func exitItems(cmd *cobra.Command) []item {
	var items []item
	for _, code := range exitsOf(cmd) {
		items = append(items, item{fmt.Sprint(int(code)), code.meaning()})
	}
	return items
}
