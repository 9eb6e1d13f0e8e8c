package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"tidemark/extent"
	"tidemark/format/thin"
)

// number is a flag that may be left away.
type number struct {
	given bool
	n     uint64
}

func (n *number) String() string { return "" }
func (n *number) Type() string   { return "number" }

// Set implements pflag.Value.
func (n *number) Set(s string) (err error) {
	if n.n, err = strconv.ParseUint(s, 10, 32); err != nil {
		return fmt.Errorf("%q is no number", s)
	}
	n.given = true
	return nil
}

// thinDelta is the command line of "thin delta".
type thinDelta struct {
	g        *globals
	snapshot snapshotFlag
	devices  [2]number
	roots    [2]number // in their place
	verbose  bool
	asJSON   bool
}

func (d *thinDelta) tool(flags *pflag.FlagSet) {
	d.snapshot.add(flags)
	for i, which := range []string{"first", "second"} {
		flags.Var(&d.devices[i], fmt.Sprintf("snap%d", i+1), "the `number` of the "+which+" device")
		flags.Var(&d.devices[i], fmt.Sprintf("thin%d", i+1), "the same as --snap"+strconv.Itoa(i+1))
		flags.Var(&d.roots[i], fmt.Sprintf("root%d", i+1), "the `block` that is the root of the "+which+" device's mappings, in place of its number")
	}
	flags.BoolVar(&d.verbose, "verbose", false, "tell where the data of each run is")
}

func newThinDelta(g *globals) *cobra.Command {
	d := &thinDelta{g: g}
	cmd := command{
		use: "delta METADATA", short: "Print what differs between two thin devices",
		long: `Prints the XML of thin_delta: the runs of blocks that are the same in two devices of a pool, are different, or are mapped in one of them only. Parts of the mappings that both devices share are read once.

With --json the parts that are not the same are listed, as offset and length in bytes.`,
		example: `tidemark thin delta --snap1 3 --snap2 7 /dev/vg/pool_tmeta
# of a pool in use
tidemark thin delta --snap1 3 --snap2 7 --json /dev/vg/volume`,
		exits: append(interruptible(), exitBusy, exitDamaged),
		args: func(cmd *cobra.Command, args []string) error {
			if lack := d.lacks(); lack != "" {
				return errors.New(lack)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		run: func(cmd *cobra.Command, args []string) error {
			return d.run(cmd.Context(), args[0], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}.build()
	d.tool(cmd.Flags())
	addJSON(cmd, &d.asJSON, "one object: what changed")
	return cmd
}

// lacks says what is missing on the command line, "" when nothing is.
func (d *thinDelta) lacks() string {
	for i := range d.devices {
		switch {
		case !d.devices[i].given && !d.roots[i].given:
			return fmt.Sprintf("--snap%d not specified.", i+1)
		case d.devices[i].given && d.roots[i].given:
			return fmt.Sprintf("--snap%d and --root%d do not go together", i+1, i+1)
		}
	}
	return ""
}

func (d *thinDelta) run(ctx context.Context, path string, out, _ io.Writer) (err error) {
	_, v, release, err := thinSource{d.snapshot, d.g}.open(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	roots, err := d.find(v)
	if err != nil {
		return err
	}
	if d.asJSON {
		return d.list(v, roots, out)
	}
	w := &deltaXML{Writer: bufio.NewWriterSize(out, 64<<10), verbose: d.verbose}
	s := v.Superblock()
	held := ""
	if s.Snapshot != 0 {
		held = fmt.Sprintf(" metadata_snap=\"%d\"", s.Snapshot)
	}
	fmt.Fprintf(w, "<superblock uuid=\"%s\" time=\"%d\" transaction=\"%d\" data_block_size=\"%d\" nr_data_blocks=\"%d\"%s>\n",
		s.UUIDText(), s.Time, s.Transaction, s.BlockSectors, s.Data.Blocks, held)
	fmt.Fprintf(w, "  <diff left=\"%d\" right=\"%d\">\n", d.devices[0].n, d.devices[1].n)
	if err := v.Delta(roots[0], roots[1], false, w.add); err != nil {
		return err
	}
	w.end()
	w.WriteString("  </diff>\n</superblock>\n")
	return errors.Join(v.Recheck(), w.Flush())
}

// find returns the roots of the mappings of both devices.
func (d *thinDelta) find(v *thin.View) (roots [2]thin.Addr, err error) {
	for i := range d.devices {
		if roots[i] = thin.Addr(d.roots[i].n); d.roots[i].given {
			continue
		}
		device, err := v.Device(uint32(d.devices[i].n))
		if errors.Is(err, thin.ErrNoDevice) {
			err = fmt.Errorf("snap%d: %w", i+1, err)
		}
		if err != nil {
			return roots, err
		}
		roots[i] = device.Root
	}
	return roots, nil
}

// list prints what changed, in bytes.
func (d *thinDelta) list(v *thin.View, roots [2]thin.Addr, out io.Writer) error {
	var set extent.Builder
	block := v.Superblock().BlockBytes()
	err := v.Delta(roots[0], roots[1], true, func(r thin.Difference) error {
		set.Add(extent.Extent{Off: int64(r.Begin) * block, Len: int64(r.Len) * block})
		return nil
	})
	if err != nil {
		return err
	}
	if err := v.Recheck(); err != nil {
		return err
	}
	return printSet(out, set.Set(), true)
}

// deltaXML writes the runs as thin_delta does.
type deltaXML struct {
	*bufio.Writer
	verbose bool
	open    thin.Difference
}

func (w *deltaXML) add(d thin.Difference) error {
	if w.verbose {
		if d.Kind != w.open.Kind {
			w.end()
			fmt.Fprintf(w, "    <%s>\n", d.Kind)
		}
		w.open = d
		return w.run(d)
	}
	if w.open.Kind == d.Kind && w.open.Begin+w.open.Len == d.Begin {
		w.open.Len += d.Len
		return nil
	}
	w.end()
	w.open = d
	return nil
}

func (w *deltaXML) run(d thin.Difference) (err error) {
	switch d.Kind {
	case thin.Different:
		_, err = fmt.Fprintf(w, "      <range begin=\"%d\" left_data_begin=\"%d\" right_data_begin=\"%d\" length=\"%d\"/>\n", d.Begin, d.Left, d.Right, d.Len)
	case thin.RightOnly:
		_, err = fmt.Fprintf(w, "      <range begin=\"%d\" data_begin=\"%d\" length=\"%d\"/>\n", d.Begin, d.Right, d.Len)
	default:
		_, err = fmt.Fprintf(w, "      <range begin=\"%d\" data_begin=\"%d\" length=\"%d\"/>\n", d.Begin, d.Left, d.Len)
	}
	return err
}

// end ends what is open.
func (w *deltaXML) end() {
	switch {
	case w.open.Len == 0:
	case w.verbose:
		fmt.Fprintf(w, "    </%s>\n", w.open.Kind)
	default: // of which there may be millions
		b := append(w.AvailableBuffer(), "    <"...)
		b = append(append(b, w.open.Kind.String()...), ` begin="`...)
		b = append(strconv.AppendUint(b, w.open.Begin, 10), `" length="`...)
		w.Write(append(strconv.AppendUint(b, w.open.Len, 10), "\"/>\n"...))
	}
}
