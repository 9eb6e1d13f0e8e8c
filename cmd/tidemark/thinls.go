package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"tidemark/format/thin"
)

// thinLs is the command line of "thin ls".
type thinLs struct {
	g         *globals
	snapshot  snapshotFlag
	fields    fieldList
	noHeaders bool
	asJSON    bool
}

// fieldList is a flag for names of columns.
type fieldList []string

// thinFields are the columns of thin_ls.
var thinFields = []string{
	"DEV", "MAPPED_BLOCKS", "EXCLUSIVE_BLOCKS", "SHARED_BLOCKS", "MAPPED_SECTORS", "EXCLUSIVE_SECTORS", "SHARED_SECTORS",
	"MAPPED_BYTES", "EXCLUSIVE_BYTES", "SHARED_BYTES", "MAPPED", "EXCLUSIVE", "SHARED", "TRANSACTION", "CREATE_TIME", "SNAP_TIME",
	"HIGHEST_MAPPED",
}

func (f *fieldList) String() string { return strings.Join(*f, ",") }
func (f *fieldList) Type() string   { return "fields" }

// Set implements pflag.Value.
func (f *fieldList) Set(s string) error {
	list := strings.Split(s, ",")
	for _, name := range list {
		if !slices.Contains(thinFields, name) {
			return fmt.Errorf("unknown field %q: one of %s", name, strings.Join(thinFields, ", "))
		}
	}
	*f = list
	return nil
}

func (l *thinLs) tool(flags *pflag.FlagSet) {
	l.fields = fieldList{"DEV", "MAPPED", "CREATE_TIME", "SNAP_TIME"}
	l.snapshot.add(flags)
	flags.VarP(&l.fields, "format", "o", "the `fields` to print, with commas between")
	flags.BoolVar(&l.noHeaders, "no-headers", false, "print no line with the names of the fields")
}

func newThinLs(g *globals) *cobra.Command {
	l := &thinLs{g: g}
	cmd := command{
		use: "ls METADATA", short: "List the thin devices of a pool",
		long: "Prints a line for each thin device, as thin_ls does. Fields are " + strings.Join(thinFields, ", ") + `. What is exclusive belongs to one device alone; to tell, all mappings are read.

With --json there is one object a line with what the metadata says of each device, in blocks of block_size bytes.`,
		example: `tidemark thin ls /dev/vg/pool_tmeta
tidemark thin ls -o DEV,MAPPED,EXCLUSIVE --metadata-snap /dev/mapper/vg-pool_tmeta`,
		exits: append(interruptible(), exitBusy, exitDamaged),
		args:  cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			return l.run(cmd.Context(), args[0], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}.build()
	l.tool(cmd.Flags())
	addJSON(cmd, &l.asJSON, "one object a line")
	return cmd
}

// thinRow is one device for programs.
type thinRow struct {
	thin.Device
	BlockSize int64  `json:"block_size"`
	Exclusive uint64 `json:"exclusive_blocks"`
	Highest   uint64 `json:"highest_byte"` // that is mapped; 0: none is
}

func (l *thinLs) run(ctx context.Context, path string, out, _ io.Writer) (err error) {
	_, v, release, err := thinSource{l.snapshot, l.g}.open(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	list, err := v.Devices()
	if err != nil {
		return err
	}
	shares := func(field string) bool {
		return strings.HasPrefix(field, "EXCLUSIVE") || strings.HasPrefix(field, "SHARED")
	}
	var exclusive map[uint32]uint64
	if l.asJSON || slices.ContainsFunc(l.fields, shares) {
		if exclusive, err = v.Exclusive(list); err != nil {
			return err
		}
	}
	var rows []thinRow
	for _, d := range list {
		row := thinRow{d, v.Superblock().BlockBytes(), exclusive[d.ID], 0}
		last, ok, err := v.Highest(d.Root)
		if err != nil {
			return err
		}
		if ok {
			row.Highest = (last+1)*uint64(row.BlockSize) - 1
		}
		rows = append(rows, row)
	}
	if err := v.Recheck(); err != nil {
		return err
	}
	if l.asJSON {
		for _, r := range rows {
			if err := printJSON(out, r); err != nil {
				return err
			}
		}
		return nil
	}
	return l.print(out, rows)
}

// print prints columns, to the right, as wide as what is in them.
func (l *thinLs) print(out io.Writer, rows []thinRow) error {
	table := [][]string{l.fields}
	if l.noHeaders {
		table = nil
	}
	for _, r := range rows {
		var line []string
		for _, f := range l.fields {
			line = append(line, r.field(f))
		}
		table = append(table, line)
	}
	width := make([]int, len(l.fields))
	for _, line := range table {
		for i, cell := range line {
			width[i] = max(width[i], len(cell))
		}
	}
	w := bufio.NewWriter(out)
	for _, line := range table {
		for i, cell := range line {
			fmt.Fprintf(w, "%*s ", width[i], cell)
		}
		w.WriteString("\n")
	}
	return w.Flush()
}

// field returns what a column says.
func (r thinRow) field(name string) string {
	kind, unit, _ := strings.Cut(name, "_")
	n := r.Mapped
	switch kind {
	case "EXCLUSIVE":
		n = r.Exclusive
	case "SHARED":
		n = r.Mapped - min(r.Exclusive, r.Mapped)
	case "DEV":
		return strconv.FormatUint(uint64(r.ID), 10)
	case "TRANSACTION":
		return strconv.FormatUint(r.Transaction, 10)
	case "CREATE":
		return strconv.FormatUint(uint64(r.Created), 10)
	case "HIGHEST":
		return inUnits(r.Highest)
	case "SNAP":
		return strconv.FormatUint(uint64(r.Snapped), 10)
	}
	bytes := n * uint64(r.BlockSize)
	switch unit {
	case "BLOCKS":
		return strconv.FormatUint(n, 10)
	case "SECTORS":
		return strconv.FormatUint(bytes/thin.SectorSize, 10)
	case "BYTES":
		return strconv.FormatUint(bytes, 10)
	}
	return inUnits(bytes)
}

// inUnits is a size as thin_ls prints it: below 8192 of a unit, and rounded below 1024.
func inUnits(n uint64) string {
	if n == 0 {
		return "0"
	}
	units, i, unit := []string{"b", "KiB", "MiB", "GiB", "TiB", "PiB"}, 0, uint64(1)
	for ; n/unit >= 8192 && i+1 < len(units); i++ {
		unit *= 1024
	}
	if n/unit < 1024 {
		n += unit / 2
	}
	return strconv.FormatUint(n/unit, 10) + units[i]
}
