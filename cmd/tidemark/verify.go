package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"tidemark/extent"
	"tidemark/transfer/copies"
)

// verified is what "verify" says.
type verified struct {
	Target    string   `json:"target"`
	Against   string   `json:"against,omitempty"`
	Checked   int64    `json:"bytes_checked"`
	Different int64    `json:"bytes_different"`
	Outcome   string   `json:"outcome"` // "ok" or "different"
	Ranges    []spot   `json:"ranges,omitempty"`
	Notes     []string `json:"notes,omitempty"`
}

// verifyRanges is how many ranges people are shown; --json has them all.
const verifyRanges = 20

// verifyFiles is how many files of a range people are shown.
const verifyFiles = 3

// spot is a range that differs.
type spot struct {
	Offset    int64    `json:"offset"` // bytes
	Length    int64    `json:"length"`
	Partition int      `json:"partition,omitempty"`
	Holds     string   `json:"holds,omitempty"`
	Files     []string `json:"files,omitempty"`
}

// locate finds out what lies where the target differs. Where that cannot be told the ranges
// are all there is.
func (v *verified) locate(ctx context.Context, bad extent.Set, bar progress) {
	spots, notes, err := copies.Where(ctx, v.Target, bad)
	if err != nil {
		notes = append(notes, "what lies there cannot be told: "+err.Error())
	}
	for _, text := range notes {
		bar.Note(v.Target + ": " + text)
	}
	if len(spots) == 0 {
		for _, e := range bad.Extents() {
			spots = append(spots, copies.Spot{Extent: e})
		}
	}
	for _, s := range spots {
		v.Ranges = append(v.Ranges, spot{s.Off, s.Len, s.Partition, s.Holds, s.Files})
	}
}

func newVerify(g *globals) *cobra.Command {
	var against string
	var asJSON bool
	cmd := command{
		use: "verify DST", short: "Check a mirror against its checksums, or against its source",
		long: `Reads all of DST and compares it with the checksums that were kept when it was copied. With --against it is compared with SRC byte for byte, which makes sense while nobody writes to SRC.

What differs is told by its place: offset and bytes, the partition, what that holds, and of ext2, ext3 and ext4 the files, where debugfs (package e2fsprogs) is installed. Nothing is repaired: the next "tidemark mirror" copies what differs, or is refused where somebody has used DST (mounted it read-write, formatted or partitioned it), which is told; until then "tidemark status" says that the mirror is damaged.

Of a mirror whose first copy has not ended, or that was discarded, what was copied is checked; it is no copy of anything, and where nothing else is wrong the command ends with exit code 6.

A mirror on a disk that is mounted read-only can be verified too; what was found is not remembered then.`,
		example: "tidemark verify /backup/vdb1.img\ntidemark verify /backup/vdb1.img --against /dev/vdb1",
		exits:   append(interruptible(), exitDifferent, exitRefused, exitBusy, exitDamaged),
		args:    cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			bar := &noting{progress: newProgress(cmd.ErrOrStderr(), asJSON)}
			v, err := g.verify(cmd.Context(), args[0], against, bar)
			bar.End()
			v.Notes = bar.notes
			if err != nil {
				return err
			}
			return v.print(cmd.OutOrStdout(), asJSON)
		},
	}.build()
	cmd.Flags().StringVar(&against, "against", "", "`src` to compare with, named as for \"tidemark mirror\"")
	addJSON(cmd, &asJSON, "one object")
	cmd.ValidArgsFunction = g.completeMirrors
	return cmd
}

func (v verified) print(w io.Writer, asJSON bool) error {
	v.Outcome = "ok"
	if v.Different > 0 {
		v.Outcome = "different"
	}
	var err error
	if asJSON {
		err = printJSON(w, v)
	} else {
		_, err = fmt.Fprintf(w, "%s: %s checked, %s differ\n", v.Target, size(v.Checked), size(v.Different))
		err = errors.Join(err, v.printRanges(w))
	}
	if err == nil && v.Different > 0 {
		err = told{fmt.Errorf("verify: %s: %d bytes: %w", v.Target, v.Different, errDifferent)}
	}
	return err
}

// printRanges prints where the target differs, one range a line.
func (v verified) printRanges(w io.Writer) error {
	if len(v.Ranges) == 0 {
		return nil
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "  offset\tbytes\twhere")
	for _, r := range v.Ranges[:min(len(v.Ranges), verifyRanges)] {
		fmt.Fprintf(table, "  %d\t%d\t%s\n", r.Offset, r.Length, r.where())
	}
	if more := len(v.Ranges) - verifyRanges; more > 0 {
		fmt.Fprintf(table, "  and %d more: see --json\n", more)
	}
	return table.Flush()
}

// where says in words what lies in a range.
func (r spot) where() string {
	var parts []string
	if r.Partition > 0 {
		parts = append(parts, fmt.Sprintf("partition %d", r.Partition))
	}
	if r.Holds != "" {
		parts = append(parts, r.Holds)
	}
	text := strings.Join(parts, ", ")
	if len(r.Files) > 0 {
		text += ": " + strings.Join(r.Files[:min(len(r.Files), verifyFiles)], ", ")
	}
	if more := len(r.Files) - verifyFiles; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
