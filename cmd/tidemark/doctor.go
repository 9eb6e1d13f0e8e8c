package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"tidemark/cmd/tidemark/internal/doctor"
	"tidemark/track"
	"tidemark/track/bpf"
	"tidemark/transfer/survey"
)

// diagnosis is what "doctor" says.
type diagnosis struct {
	doctor.Report
	Devices []survey.Device `json:"devices"`
}

func newDoctor(g *globals) *cobra.Command {
	var asJSON bool
	cmd := command{
		use: "doctor", short: "Tell what this machine can do, and with which of its disks",
		long: `Tries what a live mirror needs from the kernel and from the user, and says of each thing what follows. Then it lists the disks, partitions and volumes of this machine: what each holds, what "tidemark mirror" would make stand still, how it would find out what changed, and whether that outlives a reboot. Of what is a member of LVM, LUKS, md or a filesystem on several devices it says what to name instead. Nothing is changed.

It ends with 0 when a mounted filesystem can be mirrored, if need be by reading all of it each time.`,
		example: "tidemark doctor\n# for programs\ntidemark doctor --json",
		args:    cobra.NoArgs,
		run: func(cmd *cobra.Command, _ []string) error {
			found, err := g.diagnose(cmd.Context())
			if err != nil {
				return err
			}
			return printDoctor(cmd.OutOrStdout(), found, asJSON)
		},
	}.build()
	addJSON(cmd, &asJSON, "one object")
	return cmd
}

func (g *globals) diagnose(ctx context.Context) (found diagnosis, err error) {
	found.Report = doctor.Run(doctor.Options{BPFFS: g.bpffs, RunDir: g.runDir})
	o := survey.Options{StateDir: g.stateDir, Track: g.trackOptions()}
	lasting, err := g.lasting()
	switch {
	case errors.Is(err, fs.ErrPermission):
		o.LostAtReboot = func(string) string { return "it is not known: " + err.Error() }
	case err != nil:
		return found, err
	default:
		o.LostAtReboot = lasting.Lost
	}
	if found.Live != doctor.Incremental {
		o.Tracker = track.KindScan
	}
	found.Devices, err = survey.Survey(ctx, o)
	return found, err
}

func printDoctor(w io.Writer, rep diagnosis, asJSON bool) error {
	if asJSON {
		if err := printJSON(w, rep); err != nil {
			return err
		}
	} else if err := errors.Join(printChecks(w, rep.Report), printDevices(w, rep.Devices)); err != nil {
		return err
	}
	if rep.Live == doctor.None {
		return told{errNotReady}
	}
	return nil
}

func printChecks(w io.Writer, rep doctor.Report) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range rep.Checks {
		state := "ok"
		if !c.OK {
			state = "missing"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n\t\t→ %s\n", c.Name, state, c.Detail, c.Consequence)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\nThis is Linux %s; tests run on Debian's %s.\nLive mirrors: %s.\n", rep.Kernel, strings.Join(rep.Tested, ", "), liveText(rep.Live))
	return err
}

func liveText(l doctor.Live) string {
	switch l {
	case doctor.Incremental:
		return "yes, and runs read only what changed"
	case doctor.Scan:
		return "yes, but each run reads the whole source"
	}
	return "no"
}

func printDevices(w io.Writer, devices []survey.Device) error {
	if len(devices) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, d := range devices {
		fmt.Fprintf(table, "%s\t%s\t%s\n", d.Path, size(d.Size), deviceText(d))
		for _, line := range adviceOn(d) {
			fmt.Fprintf(table, "\t\t→ %s\n", line)
		}
	}
	return table.Flush()
}

// deviceText says what a device holds.
func deviceText(d survey.Device) string {
	text := cmp.Or(d.Type, "nothing known")
	if d.Label != "" {
		text += fmt.Sprintf(" %q", d.Label)
	}
	if len(d.Mounted) > 0 {
		text += " on " + strings.Join(d.Mounted, ", ")
	}
	return text
}

// adviceOn says what can be done with a device.
func adviceOn(d survey.Device) []string {
	var lines []string
	switch d.View {
	case "":
	case survey.Refused:
		lines = append(lines, "not by itself: "+d.ViewWhy)
	default:
		after := "after a reboot as well"
		switch {
		case d.Tracker == track.KindScan:
			after = "each run reads all of it"
		case !d.Lasting:
			after = "the next reboot: " + d.LostAtReboot
		case d.Tracker == bpf.Kind:
			after = "after a clean reboot as well, not after a power cut"
		}
		lines = append(lines, d.View+": "+d.ViewWhy, fmt.Sprintf("%s: %s; %s", d.Tracker, d.TrackerWhy, after))
	}
	return append(lines, d.Notes...)
}
