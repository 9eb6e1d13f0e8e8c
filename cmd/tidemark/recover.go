package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"tidemark/transfer/pairs"
)

func newRecover(g *globals) *cobra.Command {
	var discard, asJSON bool
	cmd := command{
		use: "recover DST", short: "Finish an update of a mirror that a crash cut off, without its source",
		long: `A crash while an update is brought to DST, the target of a mirror, leaves it between the old copy and the new. All that it lacks lies in the folder beside it. The next "tidemark mirror" brings that to its end, and so does "tidemark recover", which does not need the source: DST is the new copy then. Where nothing waits that is said, and nothing is done.

With --discard the update is forgotten instead, as when the journal is damaged, or another image was put in the place of DST: DST stays as it is, is no source any more, and the next "tidemark mirror" compares all of it. Where no update waits, --discard forgets a first copy that has not ended, and that DST was to become a mirror.

A restore onto DST that was committed when it was cut off is finished too. One that was cut off in place ends when "tidemark restore" is run again; --discard forgets it, and DST, which may be neither what it was nor the copy, may be used as a source again.`,
		example: `# The source is gone, and the power went while it was copied: finish the copy.
tidemark recover /backup/vdb1.img`,
		exits: append(interruptible(), exitRefused, exitBusy, exitDamaged),
		args:  cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			told, err := pairs.Recover(cmd.Context(), args[0], discard, pairs.Options{StateDir: g.stateDir})
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]string{"target": args[0], "outcome": told})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", args[0], told)
			return err
		},
	}.build()
	cmd.Flags().BoolVar(&discard, "discard", false, "forget what waits; DST stays as it is")
	addJSON(cmd, &asJSON, "one object")
	cmd.ValidArgsFunction = g.completeMirrors
	return cmd
}
