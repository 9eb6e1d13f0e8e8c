package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"tidemark/track/bpf"
	"tidemark/transfer/target"
)

// command is one entry of the command tree: all that help, man page and
// completion say of it. Flags are added to the cobra.Command that it becomes.
type command struct {
	use     string // name and arguments
	short   string // summary, one line without a full stop
	long    string // description, paragraphs with an empty line between
	example string // command lines that work, comments between
	exits   []exitCode
	args    cobra.PositionalArgs
	run     func(cmd *cobra.Command, args []string) error // nil for a group
	hidden  bool
}

const exitsKey = "exits" // of cobra.Command.Annotations

func (c command) build(children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: c.use, Short: c.short, Long: c.long, Example: c.example, Hidden: c.hidden,
		DisableFlagsInUseLine: true, SuggestionsMinimumDistance: 2,
		Annotations: map[string]string{exitsKey: joinExits(c.exits)},
	}
	cmd.AddCommand(children...)
	if c.run == nil {
		cmd.Args, cmd.RunE = cobra.ArbitraryArgs, refuseGroup
		return cmd
	}
	cmd.RunE = c.run
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := c.args(cmd, args); err != nil {
			return usageError{plainly(err, cmd, args)}
		}
		return nil
	}
	return cmd
}

// plainly says of a wrong number of arguments which is missing, or is one too many.
// cobra counts them only.
func plainly(err error, cmd *cobra.Command, args []string) error {
	text := err.Error()
	if !strings.Contains(text, "arg(s)") && !strings.HasPrefix(text, "unknown command") {
		return err
	}
	wanted := arguments(cmd)
	if len(args) < len(wanted) {
		return fmt.Errorf("%s is missing: %s", wanted[len(args)], synopsis(cmd))
	}
	return fmt.Errorf("%q is one argument too many: %s", args[len(wanted)], synopsis(cmd))
}

// arguments returns the names of the arguments that cmd must have, in their order.
func arguments(cmd *cobra.Command) []string {
	words := strings.Fields(cmd.Use)[1:]
	var names []string
	for i := 0; i < len(words); i++ {
		switch {
		case strings.HasPrefix(words[i], "["): // up to the word with the other bracket
			for ; i < len(words) && !strings.Contains(words[i], "]"); i++ {
			}
		case strings.HasPrefix(words[i], "-"):
			i++ // its value
		default:
			names = append(names, strings.TrimSuffix(words[i], "..."))
		}
	}
	return names
}

// refuseGroup is what a command that only groups others does when it is called
// itself.
func refuseGroup(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("which command? one of %s", strings.Join(childNames(cmd), ", "))
	}
	err := usagef("%q is not a command of %q", args[0], cmd.CommandPath())
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return hinted{err, fmt.Sprintf("did you mean %q?", cmd.CommandPath()+" "+near[0])}
	}
	return err
}

func childNames(cmd *cobra.Command) []string {
	var names []string
	for _, c := range visible(cmd) {
		names = append(names, c.Name())
	}
	return names
}

// visible returns the subcommands that are shown to users.
func visible(cmd *cobra.Command) []*cobra.Command {
	var all []*cobra.Command
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" {
			all = append(all, c)
		}
	}
	return all
}

func joinExits(codes []exitCode) string {
	var words []string
	for _, c := range append(everywhere(), codes...) {
		words = append(words, strconv.Itoa(int(c)))
	}
	return strings.Join(words, " ")
}

// exitsOf returns the codes that cmd may end with, in ascending order.
func exitsOf(cmd *cobra.Command) []exitCode {
	var codes []exitCode
	for word := range strings.FieldsSeq(cmd.Annotations[exitsKey]) {
		if n, err := strconv.Atoi(word); err == nil {
			codes = append(codes, exitCode(n))
		}
	}
	slices.Sort(codes)
	return slices.Compact(codes)
}

// globals are the options that all commands have.
type globals struct {
	runDir   string // state of tracking, gone after a reboot
	stateDir string // what is kept beside device targets
	bpffs    string
	config   string // the file of jobs
}

const (
	envRunDir   = "TIDEMARK_RUN_DIR"
	envStateDir = "TIDEMARK_STATE_DIR"
	envBPFFS    = "TIDEMARK_BPFFS"
	envConfig   = "TIDEMARK_CONFIG"
)

// environment lists the variables that the program reads.
func environment() [][2]string {
	return [][2]string{
		{envRunDir, "Like --run-dir, which goes before."},
		{envStateDir, "Like --state-dir, which goes before."},
		{envConfig, "Like --config of \"tidemark job\", which goes before."},
		{envBPFFS, "Where bpffs is or shall be mounted; /sys/fs/bpf by default."},
		{envVault, "The vault of a command that is given none."},
		{envPassphrase, "The passphrase of the vault, where the command line names none. Other programs of the user may see it: --passphrase-file is better."},
		{envCache, "The folder in which a folder tidemark has what is known of vaults and can be made again; by default /var/cache for root, else ~/.cache."},
	}
}

func newRoot() *cobra.Command {
	g := &globals{}
	root := command{
		use:   "tidemark",
		short: "Keep incremental, consistent copies of live block devices",
		long: `tidemark copies a mounted, busy block device to an image file or another device. The first run reads everything; each later run reads and writes only what changed since. Every run ends with the copy equal to the source at one instant, at which its filesystems were frozen.

An eBPF program in the kernel remembers which blocks were written, and a short filesystem freeze gives the instant. No kernel module, no reboot, no spare volume.`,
		example: `# Can this machine do it?
tidemark doctor
# The first run copies everything, later ones what changed.
tidemark mirror /dev/vdb1 /backup/vdb1.img
tidemark status /backup/vdb1.img`,
	}.build(
		newMirror(g), newBackup(g), newPoints(), newDiff(), newForget(), newPrune(), newRestore(g), newMount(g), newUmount(), newVerify(g), newStatus(g), newRecover(g), newJob(g), newTrack(g), newEra(g), newThin(g), newSnapshot(g), newSnapstore(g), newVault(), newDatto(g), newCBT(), newAdopt(), newBoot(g), newDoctor(g), newVersion(), newMan(),
	)
	flags := root.PersistentFlags()
	flags.StringVar(&g.runDir, "run-dir", bpf.DefaultRunDir, "`folder` for the state of tracking, emptied by a reboot")
	flags.StringVar(&g.stateDir, "state-dir", target.DefaultStateDir, "`folder` for what is kept about targets that are devices")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return g.resolve(cmd) }
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetHelpCommand(newHelp())
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		if strayHelp(cmd) == nil {
			fmt.Fprint(cmd.OutOrStdout(), helpText(cmd))
		}
	})
	root.Version = versionLine()
	root.SetVersionTemplate("{{.Version}}\n")
	root.Flags().BoolP("version", "V", false, `print the version, as "tidemark version" does`)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	nameValues(root)
	return root
}

// resolve fills in what the environment says where the command line is silent.
func (g *globals) resolve(cmd *cobra.Command) error {
	for _, v := range []struct {
		env, flag string
		to        *string
	}{{envRunDir, "run-dir", &g.runDir}, {envStateDir, "state-dir", &g.stateDir}, {envConfig, "config", &g.config}} {
		if s := os.Getenv(v.env); s != "" && !cmd.Flags().Changed(v.flag) {
			*v.to = s
		}
		if *v.to == "" {
			return usagef("--%s is empty", v.flag)
		}
	}
	g.bpffs = os.Getenv(envBPFFS)
	return nil
}

// fromEnvironment returns the options of a program that is called by another name, which has no
// flags for them.
func fromEnvironment() *globals {
	return &globals{
		runDir: cmp.Or(os.Getenv(envRunDir), bpf.DefaultRunDir), stateDir: cmp.Or(os.Getenv(envStateDir), target.DefaultStateDir),
		bpffs: os.Getenv(envBPFFS),
	}
}

// addJSON adds the flag that makes a command speak to programs.
func addJSON(cmd *cobra.Command, to *bool, what string) {
	cmd.Flags().BoolVar(to, "json", false, "print JSON, "+what)
}

// printJSON writes v as one line.
func printJSON(w io.Writer, v any) error {
	return json.NewEncoder(w).Encode(v)
}
