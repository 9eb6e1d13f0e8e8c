// Command tidemark-boot is what the initramfs has of tidemark, under that name: what opens devices
// before anything is mounted, and what the remedies name that are printed when that fails. It is a
// fifth of the whole program. The hooks of "tidemark boot install" take it from beside tidemark.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"tidemark/block"
	"tidemark/boot"
	"tidemark/boot/early"
	"tidemark/format/era"
	"tidemark/linux/dm"
	"tidemark/linux/dmera"
	"tidemark/linux/dmhold"
	"tidemark/linux/fsfreeze"
	"tidemark/linux/reexec"
	"tidemark/snapshot"
	"tidemark/track/bpf"
)

// Exit codes, as those of tidemark.
const (
	exitOK      = 0
	exitError   = 1
	exitUsage   = 2
	exitDamaged = 8
)

const usage = `tidemark-boot is the part of tidemark that an initramfs has. It knows these commands:
  boot open [NAME...] [--stage initramfs|system] [--wait TIME]
  boot open --instead-of DEVICE
  era check METADATA
  era create NAME --data DEVICE --meta DEVICE
"tidemark COMMAND --help", in the running system, says what they do.
`

// stateDir is what package target has as its default. Before root is mounted it is gone after the
// boot.
const stateDir = "/var/lib/tidemark"

func main() {
	reexec.Main(fsfreeze.Watchdog, dmhold.Holder, dmera.Step)
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

var errUsage = errors.New("bad command line")

// run executes a command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := fmt.Errorf("%w: %q", errUsage, args)
	if len(args) >= 2 {
		switch command, rest := args[0]+" "+args[1], args[2:]; command {
		case "boot open":
			err = open(ctx, rest, stdout, stderr)
		case "era check":
			err = check(rest, stdout)
		case "era create":
			err = create(ctx, rest, stdout)
		}
	}
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "tidemark: %v\n", err)
	if remedy := early.Remedy(err); remedy != "" {
		fmt.Fprintf(stderr, "tidemark: hint: %s\n", remedy)
	}
	switch {
	case errors.Is(err, errUsage):
		fmt.Fprint(stderr, usage)
		return exitUsage
	case errors.Is(err, era.ErrDamaged):
		return exitDamaged
	}
	return exitError
}

// parse parses options that may stand before and after the other arguments, which it returns.
func parse(flags *flag.FlagSet, args []string) (rest []string, err error) {
	flags.SetOutput(io.Discard)
	for {
		if err := flags.Parse(args); err != nil {
			return nil, fmt.Errorf("%w: %w", errUsage, err)
		}
		if flags.NArg() == 0 {
			return rest, nil
		}
		rest, args = append(rest, flags.Arg(0)), flags.Args()[1:]
	}
}

func open(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("boot open", flag.ContinueOnError)
	stage := flags.String("stage", "", "")
	instead := flags.String("instead-of", "", "")
	wait := flags.Duration("wait", 0, "")
	names, err := parse(flags, args)
	if err != nil {
		return err
	}
	sys, err := boot.OpenSystem("/")
	if err != nil {
		return err
	}
	table, err := sys.Tab()
	if err := errors.Join(err, sys.Close()); err != nil {
		return err
	}
	if *instead != "" {
		if path := early.Instead(table, *instead); path != "" {
			_, err = fmt.Fprintln(stdout, path)
		}
		return err
	}
	return opener(*wait, stderr).Open(ctx, table, boot.Stage(*stage), names)
}

func opener(wait time.Duration, talk io.Writer) early.Opener {
	track := bpf.Options{RunDir: bpf.DefaultRunDir}
	return early.Opener{
		Era:       dmera.Options{StateDir: stateDir},
		Track:     track,
		Snapshots: snapshot.Options{StateDir: stateDir, Track: track},
		Wait:      wait, Talk: talk,
	}
}

// check tells of every fault of the metadata of an era device.
func check(args []string, stdout io.Writer) error {
	if len(args) != 1 {
		return fmt.Errorf("%w: era check METADATA", errUsage)
	}
	dev, err := block.Open(args[0], block.Options{Direct: true, Exclusive: true})
	if err != nil {
		return fmt.Errorf("era: %w", err)
	}
	defer dev.Close()
	sum, err := era.Check(dev, dev.Size(), func(f *era.Fault) { fmt.Fprintf(stdout, "%s: %v\n", f.Severity, f) })
	if err != nil {
		return err
	}
	if sum.Faults > 0 {
		return fmt.Errorf("era: check: %s: %d faults: %w", args[0], sum.Faults, era.ErrDamaged)
	}
	_, err = fmt.Fprintf(stdout, "%s: no faults\n", args[0])
	return err
}

func create(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("era create", flag.ContinueOnError)
	o := dmera.CreateOptions{Options: dmera.Options{StateDir: stateDir}, BlockSize: dmera.DefaultBlockSize}
	flags.StringVar(&o.Data, "data", "", "")
	flags.StringVar(&o.Meta, "meta", "", "")
	names, err := parse(flags, args)
	if err != nil {
		return err
	}
	if len(names) != 1 || o.Data == "" || o.Meta == "" {
		return fmt.Errorf("%w: era create NAME --data DEVICE --meta DEVICE", errUsage)
	}
	o.Name = names[0]
	ctl, err := dm.Open()
	if err != nil {
		return err
	}
	d, err := dmera.Create(ctx, ctl, o)
	if err == nil {
		_, err = fmt.Fprintf(stdout, "/dev/mapper/%s is open\n", o.Name)
		err = errors.Join(err, d.Close())
	}
	return errors.Join(err, ctl.Close())
}
