package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"tidemark/agent/job"
)

// choice is a flag with a few values. "cow:STORE" allows any text behind "cow:".
type choice struct {
	value   string
	allowed []string
}

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return strings.Join(c.allowed, "|") }

// Set implements pflag.Value.
func (c *choice) Set(s string) error {
	kind, rest, _ := strings.Cut(s, ":")
	fits := func(allowed string) bool {
		begin, open := strings.CutSuffix(allowed, ":STORE")
		return open && begin == kind && rest != "" || !open && allowed == s
	}
	if !slices.ContainsFunc(c.allowed, fits) {
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

// byteSize is a flag for a number of bytes, in the units of job.ParseSize.
type byteSize int64

// addSize adds a flag for a size, and says the units.
func addSize(cmd *cobra.Command, to pflag.Value, name, usage string) {
	cmd.Flags().Var(to, name, usage+" (K, M, G, T: powers of 1024; KB, MB, GB, TB: of 1000; s: sectors of 512 bytes)")
}

// byteRate is a flag for a number of bytes a second; see job.ParseRate.
type byteRate struct{ byteSize }

// Set implements pflag.Value.
func (r *byteRate) Set(s string) error {
	n, err := job.ParseRate(s)
	if err == nil {
		r.byteSize = byteSize(n)
	}
	return err
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
	n, err := job.ParseSize(s)
	if err != nil {
		return err
	}
	*b = byteSize(n)
	return nil
}
