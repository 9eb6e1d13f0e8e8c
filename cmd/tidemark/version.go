package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker; see the Makefile.
var version string

func newVersion() *cobra.Command {
	var asJSON bool
	cmd := command{
		use: "version", short: "Print the version",
		example: "tidemark version\ntidemark version --json",
		args:    cobra.NoArgs,
		run: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]string{"version": versionText(), "go": runtime.Version(), "platform": platform()})
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), versionLine())
			return err
		},
	}.build()
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

func versionLine() string {
	return fmt.Sprintf("tidemark %s (%s, %s)", versionText(), runtime.Version(), platform())
}

func platform() string { return runtime.GOOS + "/" + runtime.GOARCH }

// versionText returns the version of the build, or of the module when it was
// built by go install.
func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
