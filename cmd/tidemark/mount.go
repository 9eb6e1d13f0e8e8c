package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"tidemark/transfer/browse"
	"tidemark/transfer/copies"
)

// mounted is what "mount" says.
type mounted struct {
	Image  string         `json:"image"`
	Mounts []browse.Shown `json:"mounts"`
	Notes  []string       `json:"notes,omitempty"`
}

// partitionNumber is the value of --partition.
type partitionNumber int

func (p *partitionNumber) String() string { return "" }
func (p *partitionNumber) Type() string   { return "n" }
func (p *partitionNumber) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return fmt.Errorf("%q is not the number of a partition", s)
	}
	*p = partitionNumber(n)
	return nil
}

func newMount(g *globals) *cobra.Command {
	var partition partitionNumber
	var asJSON bool
	cmd := command{
		use: "mount IMAGE DIR", short: "Show the files of a copy, read-only",
		long: `Mounts the filesystem in IMAGE, the target of a mirror or any other image file or device, on the folder DIR. Of a whole disk with several filesystems each is mounted, that of partition 1 on DIR/p1 and so on, in a small tmpfs over DIR; with one filesystem, or with --partition, that is mounted on DIR itself. What cannot be mounted, as swap, is told.

Nothing of IMAGE is changed: it is mounted from read-only loop devices, and no journal is replayed (ext3 and ext4: noload; XFS: norecovery,nouuid; Btrfs: rescue=nologreplay). What is said about that at some mounts is explained in docs/manual/filesystems.md. Device files and set-user-ID bits have no effect.

A Btrfs of several devices is refused, and so is, before Linux 6.7, one whose original or another copy is mounted.

A mirror with an update that waits since a crash is finished first; one whose first copy has not ended, or that a run is updating, is refused. While it is mounted, "tidemark mirror" does not update it and ends with exit code 6: "tidemark umount DIR" ends that. Mounts and loop devices are gone after a reboot.`,
		example: `tidemark mount /backup/vdb1.img /mnt
tidemark umount /mnt
# The files of partition 2 of a whole disk
tidemark mount --partition 2 /backup/vdb.img /mnt`,
		exits: append(interruptible(), exitRefused, exitBusy, exitDamaged),
		args:  cobra.ExactArgs(2),
		run: func(cmd *cobra.Command, args []string) error {
			bar := &noting{progress: newProgress(cmd.ErrOrStderr(), asJSON)}
			shown, err := copies.Browse(cmd.Context(), args[0], args[1], int(partition), copies.Options{StateDir: g.stateDir, Progress: shower(bar)})
			bar.End()
			if err != nil {
				return err
			}
			return mounted{args[0], shown, bar.notes}.print(cmd.OutOrStdout(), asJSON)
		},
	}.build()
	cmd.Flags().Var(&partition, "partition", "mount only that of partition `n`")
	addJSON(cmd, &asJSON, "one object")
	cmd.ValidArgsFunction = g.completeMirrors
	return cmd
}

func (m mounted) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, m)
	}
	for _, s := range m.Mounts {
		of := m.Image
		if s.Partition > 0 {
			of = fmt.Sprintf("partition %d of %s", s.Partition, m.Image)
		}
		if _, err := fmt.Fprintf(w, "%s: %s (%s, %s)\n", s.Dir, of, s.Type, s.Options); err != nil {
			return err
		}
	}
	return nil
}

func newUmount() *cobra.Command {
	var asJSON bool
	cmd := command{
		use: "umount DIR", short: `Undo "tidemark mount"`,
		long:    `Unmounts what "tidemark mount" has mounted on DIR, and lets go of its loop devices. Anything else that is mounted on DIR or in it is refused, and nothing is undone then. While a program uses the files it ends with exit code 7. "umount -R DIR" does the same.`,
		example: `tidemark umount /mnt`,
		exits:   []exitCode{exitRefused, exitBusy},
		args:    cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			undone, err := browse.Unmount(args[0])
			if err == nil && asJSON {
				err = printJSON(cmd.OutOrStdout(), map[string][]string{"unmounted": undone})
			}
			return err
		},
	}.build()
	cmd.Aliases = []string{"unmount"}
	addJSON(cmd, &asJSON, "one object")
	return cmd
}
