package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"tidemark/extent"
	"tidemark/format/era"
	"tidemark/linux/dmera"
)

// eraChanges is the command line of "era changes".
type eraChanges struct {
	since  eraNumber
	of     string // identity of the metadata, "" for any
	asXML  bool
	asJSON bool
}

// eraChanged is what "era changes" says.
type eraChanged struct {
	Device    string       `json:"device"`
	Identity  era.Identity `json:"identity"`
	Since     era.Era      `json:"since"`
	Until     era.Era      `json:"until"`
	BlockSize int64        `json:"block_size"` // bytes
	Bytes     int64        `json:"bytes"`
	Extents   [][2]int64   `json:"extents"` // offset and length, bytes of the device
	set       extent.Set
}

func newEraChanges(g *globals) *cobra.Command {
	v := &eraChanges{}
	cmd := command{
		use: "changes DEVICE --since ERA", short: "Print which parts of an era device changed since an era",
		long: `Prints the parts of DEVICE that were written to in era ERA or later, one a line: offset and length in bytes. DEVICE is an era device that is up: its name, /dev/mapper/NAME or /dev/dm-N.

An era number means nothing for other metadata than that which it was read from: keep the identity with it, as --json and "tidemark era status" print it, and give both the next time. Metadata of another identity is refused.

A metadata snapshot is taken for it, read, and dropped. One that a killed tidemark has left is dropped before; one that another program holds is not, and the command fails.

Keep the era that is printed as "until", and ask from it the next time, with a copy made in between: before the snapshot is taken, the device is suspended for the moment that the writes under way need to come through, so none of them is missed. What is written at that moment may be told twice. When a device has grown, nobody has written to the new part: copy it as well.

dm-era knows of a discard only its first block. While the device takes discards, or when it was seen to take any since ERA, the list would lack blocks: the command fails, and names the era to ask from when everything was copied once. "tidemark era open" switches discards off; the same after the data was in use while the era device was not up, where "tidemark boot" has noticed. Not seen are discards of a device that another program let take discards and took down, or that ended with the system.`,
		example: `tidemark era changes data --since 12 --identity 6f1d0e5c2b7a4893a1c4d5e6f7089b2a
# for programs
tidemark era changes /dev/mapper/data --since 12 --json
# for era_copy
tidemark era changes data --since 12 --xml`,
		exits: append(interruptible(), exitMarkLost, exitBusy, exitDamaged),
		args: func(cmd *cobra.Command, args []string) error {
			switch {
			case !v.since.given:
				return errors.New("--since ERA is needed")
			case v.of != "" && new(era.Identity).UnmarshalText([]byte(v.of)) != nil:
				return fmt.Errorf("--identity: %q is none; \"tidemark era status\" prints it", v.of)
			case v.asXML && v.asJSON:
				return errors.New("--xml and --json exclude each other")
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		run: func(cmd *cobra.Command, args []string) error {
			return g.withEra(args[0], func(d *dmera.Device) error {
				c, err := v.ask(cmd.Context(), d)
				if err != nil {
					return err
				}
				return v.print(cmd.OutOrStdout(), cmd.ErrOrStderr(), c)
			})
		},
	}.build()
	cmd.Flags().Var(&v.since, "since", "first era that counts, as a run before has told")
	cmd.Flags().StringVar(&v.of, "identity", "", "refuse when the metadata is not of this `identity`, for which ERA was told")
	cmd.Flags().BoolVar(&v.asXML, "xml", false, "print the list of era_invalidate, in blocks, which era_copy reads")
	addJSON(cmd, &v.asJSON, "one object")
	return cmd
}

// ask lists what changed. The snapshot is gone when it returns.
func (v *eraChanges) ask(ctx context.Context, d *dmera.Device) (c eraChanged, err error) {
	id, err := d.Identity()
	if err != nil {
		return c, err
	}
	var of era.Identity
	if v.of != "" {
		err = of.UnmarshalText([]byte(v.of))
	}
	if err != nil {
		return c, err
	}
	if v.of != "" && id != of {
		return c, fmt.Errorf("era: %s: %w: its identity is %q, era %d is of %s", d.Path(), errOtherMetadata, id, v.since.value, v.of)
	}
	if err := d.Prepare(ctx); err != nil {
		return c, err
	}
	until, err := d.Drain(ctx)
	if err != nil {
		return c, err
	}
	s, err := d.TakeSnapshot(ctx)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	since := era.Era(v.since.value)
	set, err := s.Changed(ctx, since)
	if err != nil {
		return c, err
	}
	// After the snapshot: each discard before it is counted.
	if err := gapless(ctx, d, since); err != nil {
		return c, err
	}
	return eraChanged{
		Device: d.Path(), Identity: id, Since: since, Until: until,
		BlockSize: d.BlockSize(), Bytes: set.Bytes(), set: set,
	}, nil
}

// errOtherMetadata says that an era is of other metadata than that which is asked.
var errOtherMetadata = errors.New("its metadata was made anew, or is another's")

// gapless fails when blocks may have changed since an era that are in none.
func gapless(ctx context.Context, d *dmera.Device, since era.Era) error {
	gap, err := d.NoteGaps(ctx)
	if err != nil {
		return err
	}
	st, err := d.Status(ctx)
	switch {
	case err != nil:
		return err
	case !st.DiscardsDisabled:
		return hinted{
			fmt.Errorf("era: %s: %w, and still are", d.Path(), dmera.ErrDiscards),
			fmt.Sprintf(`"tidemark era open %s" with its data and metadata switches them off; take everything as changed once`, d.Name()),
		}
	case since >= gap.End:
		return nil
	}
	next, err := d.Drain(ctx)
	if err != nil {
		return err
	}
	return hinted{
		fmt.Errorf("era: %s: what changed from era %d to %d is not known in full: %w", d.Path(), since, gap.End, gap.Why),
		fmt.Sprintf("copy everything once; then ask from era %d", next),
	}
}

func (v *eraChanges) print(out, errs io.Writer, c eraChanged) error {
	if v.asJSON {
		c.Extents = [][2]int64{}
		for _, e := range c.set.Extents() {
			c.Extents = append(c.Extents, [2]int64{e.Off, e.Len})
		}
		return printJSON(out, c)
	}
	err := v.list(out, c)
	if err == nil {
		fmt.Fprintf(errs, "tidemark: note: until era %d; ask from it the next time\n", c.Until)
	}
	return err
}

func (v *eraChanges) list(out io.Writer, c eraChanged) error {
	if !v.asXML {
		return changed{set: c.set}.print(out, false)
	}
	list := era.NewRangesXML(out)
	for _, e := range c.set.Extents() {
		r := era.Range{Begin: era.Block(e.Off / c.BlockSize), End: era.Block((e.Off + e.Len + c.BlockSize - 1) / c.BlockSize)}
		if err := list.Range(r); err != nil {
			return err
		}
	}
	return list.Close()
}
