package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"tidemark/format/era"
)

// dropInVersion is that of the tools whose options and output the drop-ins have.
const dropInVersion = "0.9.0"

// dropIn is a program that tidemark is when it is called by its name.
type dropIn struct {
	usage []string // the first line, then one for each option
	input bool     // one argument is the metadata to read
	flags func(*pflag.FlagSet)
	lacks func() string // what is missing on the command line, "" when nothing is
	run   func(ctx context.Context, path string, out, errs io.Writer) error
}

// dropIns lists the programs of thin-provisioning-tools.
func dropIns() map[string]dropIn {
	all := eraDropIns()
	maps.Copy(all, thinDropIns())
	return all
}

// eraDropIns lists the era programs. The lines of usage are those of 0.9; what 1.x added
// comes last.
func eraDropIns() map[string]dropIn {
	return map[string]dropIn{
		"era_dump":       dropInDump(),
		"era_invalidate": dropInInvalidate(),
		"era_check":      dropInCheck(),
		"era_restore":    dropInRestore("era_restore", "xml file", (*eraRestore).restoreQuietly),
		"era_repair":     dropInRestore("era_repair", "device or file", (*eraRestore).repair),
	}
}

func dropInDump() dropIn {
	d := &eraDump{}
	return dropIn{
		usage: []string{
			"era_dump [options] {device|file}", "{-h|--help}", "{-o|--output} <xml file>", "{-V|--version}", "{-r|--repair}", "{--logical}",
		},
		input: true, flags: d.tool,
		run: func(ctx context.Context, path string, out, errs io.Writer) error {
			err := d.run(ctx, path, out, errs)
			var fault *era.Fault // of a superblock, it cannot be repaired
			if errors.As(err, &fault) && fault.Offset > 0 && errors.Is(err, era.ErrDamaged) && !d.repair {
				return fmt.Errorf("%w\nperhaps you wanted to run with --repair ?", err)
			}
			return err
		},
	}
}

func dropInInvalidate() dropIn {
	v := &eraInvalidate{quiet: true}
	return dropIn{
		usage: []string{
			"era_invalidate [options] --written-since <era> {device|file}",
			"{-h|--help}", "{-o|--output} <xml file>", "{--metadata-snapshot}", "{-V|--version}",
		},
		input: true, flags: v.tool,
		lacks: func() string {
			if v.since.given {
				return ""
			}
			return "Please specify --written-since"
		},
		run: v.run,
	}
}

func dropInCheck() dropIn {
	c := &eraCheck{}
	return dropIn{
		usage: []string{
			"era_check [options] {device|file}",
			"{-q|--quiet}", "{-h|--help}", "{-V|--version}", "{--super-block-only}", "{--ignore-non-fatal-errors}",
		},
		input: true, flags: c.tool, run: c.runAsTool,
	}
}

// runAsTool prints as era_check 0.9 does: to standard error alone.
func (c *eraCheck) runAsTool(ctx context.Context, path string, _, errs io.Writer) error {
	if c.quiet {
		errs = io.Discard
	}
	fmt.Fprintln(errs, "examining superblock")
	sum, err := c.check(ctx, path, func(f *era.Fault) { fmt.Fprintf(errs, "  %s\n", faultText(f)) })
	switch {
	case errors.Is(err, era.ErrNotEra), errors.Is(err, era.ErrNewer), errors.Is(err, era.ErrDamaged):
		fmt.Fprintf(errs, "  superblock is corrupt\n    %v\n", err)
		return errQuiet
	case err != nil:
		return err
	case c.bad(sum):
		return errQuiet
	}
	return nil
}

func dropInRestore(name, input string, run func(*eraRestore, context.Context, io.Writer, io.Writer) error) dropIn {
	r := &eraRestore{force: true}
	return dropIn{
		usage: []string{
			name + " [options]", "{-h|--help}", "{-i|--input} <input " + input + ">",
			"{-o|--output} <output device or file>", "{-q|--quiet}", "{-V|--version}",
		},
		flags: func(flags *pflag.FlagSet) { r.tool(flags, "") },
		lacks: func() string {
			switch {
			case r.input == "":
				return "No input file provided.\n"
			case r.output == "":
				return "No output file provided.\n"
			}
			return ""
		},
		run: func(ctx context.Context, _ string, out, errs io.Writer) error { return run(r, ctx, out, errs) },
	}
}

func (r *eraRestore) restoreQuietly(ctx context.Context, out, _ io.Writer) error {
	return r.restore(ctx, out, silent{})
}

// errQuiet is a failure that has been told already, or must not be.
var errQuiet = errors.New("failed")

// exitStatus is a failure that has been told already, and the code that it ends with.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// called runs the program by whose name the command line calls it.
func called(args []string, stdout, stderr io.Writer) int {
	name := filepath.Base(args[0])
	if tool, ok := otherTools()[name]; ok {
		ctx, stop := withSignals(context.Background())
		defer stop()
		return finish(ctx, tool(ctx, args[1:], stdio{os.Stdin, stdout, stderr}), stderr)
	}
	d, ok := dropIns()[name]
	if !ok {
		return run(args[1:], stdout, stderr)
	}
	ctx, stop := withSignals(context.Background())
	defer stop()
	return d.execute(ctx, name, args[1:], stdout, stderr)
}

// execute returns the exit code of the program: 0, 1, or that of a signal.
func (d dropIn) execute(ctx context.Context, name string, args []string, stdout, stderr io.Writer) int {
	flags := pflag.NewFlagSet(name, pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	help := flags.BoolP("help", "h", false, "")
	version := flags.BoolP("version", "V", false, "")
	d.flags(flags)
	addIgnored(flags)
	flags.SetNormalizeFunc(unabbreviated(flags))
	if err := flags.Parse(args); err != nil {
		fmt.Fprintf(stderr, "%s: %v\n%s", name, err, d.usageText())
		return int(exitError)
	}
	switch {
	case *help:
		fmt.Fprint(stdout, d.usageText())
		return int(exitOK)
	case *version:
		fmt.Fprintf(stdout, "%s (tidemark %s)\n", dropInVersion, versionText())
		return int(exitOK)
	}
	operands := flags.Args()
	if d.input { // one of them may be an option's
		operands = withoutSnapshotNumber(flags, args)
	}
	if lack := d.missing(operands); lack != "" {
		fmt.Fprintf(stderr, "%s\n%s", lack, d.usageText())
		return int(exitError)
	}
	if d.input {
		if problem := misfit(first(operands)); problem != "" {
			if quiet := flags.Lookup("quiet"); quiet == nil || quiet.Value.String() != "true" {
				fmt.Fprintln(stderr, problem)
			}
			return int(exitError)
		}
	}
	return finish(ctx, d.run(ctx, first(operands), stdout, stderr), stderr)
}

// misfit tells what cannot be metadata, as it is there, without reading it as such: in
// the words of the tools where scripts may know them. It is empty for what may be.
func misfit(path string) string {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Sprintf("%s: %v", path, errors.Unwrap(err))
	case info.Mode().Type() == os.ModeDevice:
		return ""
	case !info.Mode().IsRegular():
		return path + ": not a block device or regular file"
	case info.Size() < era.BlockSize:
		return fmt.Sprintf("Metadata device/file too small.  Is this binary metadata? (%s: %d bytes)", path, info.Size())
	}
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	begin := make([]byte, 64)
	if _, err := f.ReadAt(begin, 0); err != nil {
		return err.Error()
	}
	if bytes.HasPrefix(bytes.TrimLeft(begin, " \t\r\n"), []byte("<")) {
		return "This looks like XML, not binary metadata: " + path
	}
	return ""
}

func first(words []string) string {
	if len(words) == 0 {
		return ""
	}
	return words[0]
}

// withoutSnapshotNumber takes the number of "--metadata-snapshot 1" off the operands,
// which 1.0 to 1.2.1 demand and 0.9 knows nothing of, where the input follows as well.
func withoutSnapshotNumber(flags *pflag.FlagSet, args []string) []string {
	operands := flags.Args()
	for i, a := range args[:max(len(args)-1, 0)] {
		number, err := strconv.ParseUint(args[i+1], 10, 64)
		if a != "--metadata-snapshot" || err != nil || len(operands) < 2 {
			continue
		}
		if number == 0 && flags.Set("metadata-snapshot", "false") != nil {
			continue // not a flag of this program
		}
		at := slices.Index(operands, args[i+1])
		return slices.Delete(slices.Clone(operands), at, at+1)
	}
	return operands
}

func finish(ctx context.Context, err error, stderr io.Writer) int {
	if err == nil {
		return int(exitOK)
	}
	var status exitStatus
	if !errors.Is(err, errQuiet) && !errors.As(err, &status) {
		fmt.Fprintln(stderr, err)
	}
	var stopped signalError
	if errors.As(context.Cause(ctx), &stopped) {
		return 128 + int(stopped.signal)
	}
	return cmp.Or(int(status), int(exitError))
}

// missing says what a command line lacks, or has too much.
func (d dropIn) missing(args []string) string {
	want := 0
	if d.input {
		want = 1
	}
	switch {
	case len(args) < want:
		return "No input file provided."
	case len(args) > want:
		return fmt.Sprintf("unexpected argument %q", args[want])
	case d.lacks != nil:
		return d.lacks()
	}
	return ""
}

func (d dropIn) usageText() string {
	return "Usage: " + d.usage[0] + "\nOptions:\n  " + strings.Join(d.usage[1:], "\n  ") + "\n"
}

// addIgnored adds options of 1.x that choose what makes no difference here.
func addIgnored(flags *pflag.FlagSet) {
	flags.String("io-engine", "", "")
	if flags.Lookup("verbose") == nil {
		flags.BoolP("verbose", "v", false, "")
	}
}

// unabbreviated lets long options be cut short as getopt_long does, as long as
// only one begins so.
func unabbreviated(flags *pflag.FlagSet) func(*pflag.FlagSet, string) pflag.NormalizedName {
	var names []string
	flags.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if slices.Contains(names, name) {
			return pflag.NormalizedName(name)
		}
		var found []string
		for _, n := range names {
			if strings.HasPrefix(n, name) {
				found = append(found, n)
			}
		}
		if name == "" || len(found) != 1 {
			return pflag.NormalizedName(name)
		}
		return pflag.NormalizedName(found[0])
	}
}
