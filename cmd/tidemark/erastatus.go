package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"tidemark/format/era"
	"tidemark/linux/dm"
	"tidemark/linux/dmera"
	"tidemark/linux/mounts"
)

// eraState is what "era status" says of one device.
type eraState struct {
	Name      string        `json:"name"`
	Device    string        `json:"device"`
	Data      string        `json:"data"`
	Meta      string        `json:"meta"`
	Size      int64         `json:"size"`       // bytes
	DataSize  int64         `json:"data_size"`  // bytes
	BlockSize int64         `json:"block_size"` // bytes
	Identity  era.Identity  `json:"identity"`
	Suspended bool          `json:"suspended"`
	Kernel    *dmera.Status `json:"kernel,omitempty"` // nil while it is suspended
	// What changed since an earlier era than this cannot be told.
	CompleteSince era.Era  `json:"complete_since,omitempty"`
	Warnings      []string `json:"warnings"`
}

func newEraStatus(g *globals) *cobra.Command {
	var asJSON bool
	cmd := command{
		use: "status [NAME...]", short: "Show era devices: the era, the metadata, and what is wrong",
		long: `Shows the named era devices, or all that are up: what they are made of, the current era, how full the metadata is, whether a metadata snapshot is held, whether discards are off, and since which era the metadata tells all, where it does not from the first on: after discards, or when the data was in use while the era device was not up. A snapshot that a tidemark which was killed has left is dropped by the next that needs one; that may be another program's, once, if it took it after a tidemark had died that was about to take one.

Discards should be off, for dm-era marks only the first block of one: the others change and are in no era. They are on for a device that another program made, or gave another table; "tidemark era open" with the same devices switches them off, and marks from before are lost. Discards that were switched off again by another way, or whose count ended with the device, are not seen. Warnings are also given when metadata is nearly full, when the data device is used past the era device, and when it has grown.`,
		example: "tidemark era status\n# for programs\ntidemark era status --json data",
		exits:   []exitCode{exitDamaged},
		args:    cobra.ArbitraryArgs,
		run: func(cmd *cobra.Command, args []string) error {
			return withMapper(func(ctl *dm.Control) error {
				names := args
				if len(names) == 0 {
					var err error
					if names, err = eraNames(cmd.Context(), ctl); err != nil {
						return err
					}
				}
				all := []eraState{}
				for _, name := range names {
					s, err := stateOf(cmd.Context(), ctl, name, g.eraOptions())
					if err != nil {
						return err
					}
					all = append(all, s)
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), all)
				}
				return printStates(cmd.OutOrStdout(), all)
			})
		},
	}.build()
	addJSON(cmd, &asJSON, "one array, sizes in bytes")
	return cmd
}

func stateOf(ctx context.Context, ctl *dm.Control, name string, o dmera.Options) (s eraState, err error) {
	d, err := dmera.Open(ctl, name, o)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	s = eraState{
		Name: d.Name(), Device: d.Path(), Data: d.DataPath(), Meta: d.MetaPath(),
		Size: d.Size(), BlockSize: d.BlockSize(), Warnings: []string{},
	}
	if s.DataSize, err = d.DataSize(); err != nil {
		return s, err
	}
	if s.Identity, err = d.Identity(); err != nil {
		return s, err
	}
	k, err := d.Status(ctx)
	switch {
	case errors.Is(err, dmera.ErrSuspended):
		s.Suspended = true
	case errors.Is(err, dmera.ErrFailed):
		s.warn("%v", err)
	case err != nil:
		return s, err
	default:
		s.Kernel = &k
		s.judge(k)
		gap, err := d.NoteGaps(ctx)
		if err != nil {
			return s, err
		}
		s.CompleteSince = gap.End
	}
	return s, s.judgeData(d)
}

func (s *eraState) warn(format string, args ...any) {
	s.Warnings = append(s.Warnings, fmt.Sprintf(format, args...))
}

// judge looks for what makes lists of changes incomplete, or will make writes fail.
func (s *eraState) judge(k dmera.Status) {
	if !k.DiscardsDisabled {
		s.warn("discards are on, and change blocks that are in no era: switch them off with \"tidemark era open\", then copy everything once")
	}
	if k.Discards > 0 {
		s.warn("%d discards were let through: what they changed may be in no era", k.Discards)
	}
	plan, err := era.NewPlan(s.Size, uint32(s.BlockSize/era.SectorSize), era.PlanOptions{})
	if total := int64(k.TotalMetadataBlocks) * k.MetadataBlockSize; err == nil && total < plan.Worst {
		s.warn("the metadata has %s, and can become full below %s: writes fail then", kib(total), kib(plan.Worst))
	}
	if k.TotalMetadataBlocks-k.UsedMetadataBlocks < k.TotalMetadataBlocks/10 {
		s.warn("the metadata is nearly full: %d of %d blocks; writes fail when it is", k.UsedMetadataBlocks, k.TotalMetadataBlocks)
	}
	if k.Era >= 1<<31 {
		s.warn("era %d: the kernel does not handle the end of its 32-bit counter", k.Era)
	}
}

// judgeData looks for use of the data device past the era device, and for growth.
func (s *eraState) judgeData(d *dmera.Device) error {
	if s.DataSize != s.Size {
		s.warn("the data device has %s, the era device %s", size(s.DataSize), size(s.Size))
	}
	table, err := mounts.Read()
	if err != nil {
		return err
	}
	use, err := table.UseOf(s.Data)
	if err != nil {
		return err
	}
	own := fmt.Sprintf("dm-%d", d.Number().Minor)
	use.Holders = slices.DeleteFunc(use.Holders, func(h string) bool { return h == own })
	above, err := table.On(d.Number())
	if err != nil {
		return err
	}
	use.Filesystems = slices.DeleteFunc(use.Filesystems, func(f mounts.Filesystem) bool {
		return slices.ContainsFunc(above, func(a mounts.Filesystem) bool { return a.Dev == f.Dev })
	})
	for _, f := range use.Filesystems {
		s.warn("%s is used past the era device, and its writes are in no era: %s", s.Data, f)
	}
	for _, h := range use.Holders {
		if !s.isAbove(h, d) {
			s.warn("%s is used past the era device, and its writes are in no era: part of %s", s.Data, h)
		}
	}
	return nil
}

// isAbove says whether a holder of the data device is stacked on the era device.
func (s *eraState) isAbove(holder string, d *dmera.Device) bool {
	own := fmt.Sprintf("dm-%d", d.Number().Minor)
	slaves, err := filepath.Glob(filepath.Join("/sys/class/block", holder, "slaves", own))
	return err == nil && len(slaves) > 0
}

func printStates(w io.Writer, all []eraState) error {
	for _, s := range all {
		if _, err := fmt.Fprintf(w, "%s: %s, in blocks of %s\n", s.Device, size(s.Size), size(s.BlockSize)); err != nil {
			return err
		}
		table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintf(table, "  data\t%s\n", s.Data)
		fmt.Fprintf(table, "  metadata\t%s%s\n", s.Meta, s.fill())
		if k := s.Kernel; k != nil {
			fmt.Fprintf(table, "  era\t%d\n", k.Era)
			if s.CompleteSince > 0 {
				fmt.Fprintf(table, "  complete\tsince era %d\n", s.CompleteSince)
			}
			fmt.Fprintf(table, "  snapshot\t%s\n", heldWord(k.HeldSnapshot))
			fmt.Fprintf(table, "  discards\t%s\n", map[bool]string{true: "off", false: "on"}[k.DiscardsDisabled])
		}
		if s.Suspended {
			fmt.Fprintf(table, "  suspended\tthe kernel says nothing until it is resumed\n")
		}
		if id := s.Identity.String(); id != "" {
			fmt.Fprintf(table, "  identity\t%s\n", id)
		}
		for _, warning := range s.Warnings {
			fmt.Fprintf(table, "  warning\t%s\n", warning)
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func (s eraState) fill() string {
	if s.Kernel == nil {
		return ""
	}
	return fmt.Sprintf(", %s of %s used", kib(int64(s.Kernel.UsedMetadataBlocks)*s.Kernel.MetadataBlockSize), kib(int64(s.Kernel.TotalMetadataBlocks)*s.Kernel.MetadataBlockSize))
}

func heldWord(a era.Addr) string {
	if a == 0 {
		return "none"
	}
	return fmt.Sprintf("held, in block %d", a)
}
