package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"tidemark/format/era"
)

// choice is a flag with a few values.
type choice struct {
	value   string
	allowed []string
}

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return strings.Join(c.allowed, "|") }

// Set implements pflag.Value.
func (c *choice) Set(s string) error {
	if !slices.Contains(c.allowed, s) {
		return fmt.Errorf("must be one of %s", strings.Join(c.allowed, ", "))
	}
	c.value = s
	return nil
}

// addChoice adds a flag whose first allowed value is the default.
func addChoice(cmd *cobra.Command, to *choice, name, usage string, allowed ...string) {
	*to = choice{allowed[0], allowed}
	cmd.Flags().Var(to, name, usage)
	// It fails only for a flag that does not exist or has one already.
	if err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(allowed, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err)
	}
}

// byteSize is a flag for a number of bytes, in the units of lvcreate, truncate and dd:
// 64K and 64KiB are in powers of 1024, 64KB in powers of 1000, 8s are sectors of 512
// bytes, in which dm-era counts.
type byteSize int64

// addSize adds a flag for a size, and says the units.
func addSize(cmd *cobra.Command, to *byteSize, name, usage string) {
	cmd.Flags().Var(to, name, usage+" (K, M, G, T: powers of 1024; KB, MB, GB, TB: of 1000; s: sectors of 512 bytes)")
}

func (b *byteSize) Type() string { return "size" }

func (b *byteSize) String() string {
	if *b == 0 {
		return "0"
	}
	return size(int64(*b))
}

// Set implements pflag.Value.
func (b *byteSize) Set(s string) error {
	number, unit := s, int64(1)
	if sectors, ok := strings.CutSuffix(s, "s"); ok {
		number, unit = sectors, era.SectorSize
	} else if n := len(s); n > 0 && strings.ContainsRune("kKmMgGtTpP", rune(s[n-1])) {
		number += "iB"
	}
	n, err := humanize.ParseBytes(number)
	if err != nil || n == 0 || n > uint64(math.MaxInt64/unit) {
		return errors.New("must be a size above zero, as 4096, 64K, 100MB or 8s (sectors)")
	}
	*b = byteSize(int64(n) * unit)
	return nil
}
