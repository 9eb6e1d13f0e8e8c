package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"tidemark/boot"
	"tidemark/boot/adopt"
	"tidemark/linux/dm"
	"tidemark/snapshot"
	"tidemark/transfer/inuse"
)

// errNamed says that settings of the system name a device in a way that would not work any
// more.
var errNamed = errors.New("the next boot would not find it")

// adoption is the command line of "adopt".
type adoption struct {
	bootSystem
	name         string
	undo, asJSON bool
	show         io.Writer // for the outcome
}

// What became of a device.
const (
	adopted     = "adopted"
	adoptLater  = "next-boot"
	adoptNever  = "not-needed"
	adoptUndone = "undone"
)

// adoptReport is what "adopt --json" prints.
type adoptReport struct {
	Device string `json:"device"`         // as given
	Path   string `json:"path,omitempty"` // of the linear device
	// Outcome is "adopted", "undone" or "not-needed", or "next-boot" where the next boot does
	// what was asked for.
	Outcome string            `json:"outcome"`
	DryRun  bool              `json:"dry_run,omitempty"`
	Reason  string            `json:"reason,omitempty"` // why not at once, or not needed
	Loader  []adopt.Reference `json:"loader,omitempty"` // root= by another name, which the initramfs follows
}

func newAdopt() *cobra.Command {
	a := &adoption{}
	cmd := command{
		use: "adopt DEVICE", short: "Make a plain disk or partition one that live snapshots can be taken of",
		long: `Puts a device of device-mapper over a plain partition, or over a disk without partitions: a table of one line, "linear", which passes everything on. The kernel can take live snapshots of such a device, and of no plain one. What is on the partition is not touched, and nothing is copied. What is a device of device-mapper already (volumes of LVM, LUKS, multipath, an era device) needs none of this.

A device that nobody uses is adopted at once, one that is in use at the next boot: then it is opened before anything is mounted, root included, in the initramfs (initramfs-tools, dracut) or by systemd, as "tidemark boot" does with era devices. Where the initramfs opens any device, its images are made anew.

The adopted device is /dev/mapper/NAME, and the names by UUID, LABEL and PARTUUID lead to it: what is mounted by these goes on to work, now and when the device is not adopted any more. Other names, such as /dev/sda2, PARTLABEL or by-path, lead to the partition itself, which the kernel refuses to mount then. /etc/fstab, /etc/crypttab, mount units and the settings of boot loaders are searched for such names, and each is told with its file and line; nothing is changed until they are gone. root= by such a name is followed by initramfs-tools, and refused with dracut. Other programs that name the partition must be told by you.

Refused are disks with partitions (adopt these), read-only, loop and network block devices, members of LVM, md or LUKS, swap, a Btrfs on several devices, and partitions whose PARTUUID another one has too.

After a partition has grown, the next boot gives the linear device its new size. To programs it is another device than the partition: the first "tidemark mirror" of it to a target of the partition wants --adopt and reads everything once.

With --undo the next boot, or this command where nobody uses the device, leaves the partition plain again. Everything that names /dev/mapper/NAME must be changed before.`,
		example: `# What would be done?
tidemark adopt --dry-run /dev/sdb1
tidemark adopt /dev/sdb1
mount /dev/mapper/sdb1 /srv
# in use: adopted by the next boot
tidemark adopt --name root /dev/sda2
# plain again
tidemark adopt --undo /dev/mapper/sdb1`,
		exits: []exitCode{exitRefused, exitBusy},
		args:  cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			if a.undo && a.name != "" {
				return usagef("--name is for the device that is made; --undo finds it by DEVICE")
			}
			a.root, a.update, a.show, a.out = "/", true, cmd.OutOrStdout(), cmd.OutOrStdout()
			if a.asJSON {
				a.out = io.Discard
			}
			return withSystem("/", func(sys *boot.System, table boot.Tab) error {
				if a.undo {
					return a.runUndo(cmd.Context(), sys, table, args[0])
				}
				return a.run(cmd.Context(), sys, table, args[0])
			})
		},
	}.build()
	flags := cmd.Flags()
	flags.StringVar(&a.name, "name", "", "`name` of the device in /dev/mapper; the kernel's name of the partition without it")
	flags.BoolVar(&a.undo, "undo", false, "let the disk or partition be plain again")
	flags.BoolVar(&a.dryRun, "dry-run", false, "print what would be done, and do nothing")
	addJSON(cmd, &a.asJSON, "one object")
	return cmd
}

func (a *adoption) run(ctx context.Context, sys *boot.System, table boot.Tab, device string) error {
	r := adoptReport{Device: device, DryRun: a.dryRun}
	if e, ok := table.LinearOver(device); ok {
		if r.Path = e.Path(); e.Open() {
			r.Outcome, r.Reason = adoptNever, "it is adopted already"
			return a.tell(r)
		}
		if a.name != "" && a.name != e.Name {
			return hinted{fmt.Errorf("adopt: %s: %w: it is %s from the next boot on", device, adopt.ErrRefused, e.Path()), "--undo it first"}
		}
		a.name = e.Name // and once more, for what is left to be done
	}
	plan, err := adopt.Judge(ctx, device, a.name)
	if errors.Is(err, adopt.ErrMapped) {
		r.Outcome, r.Reason = adoptNever, adopt.ErrMapped.Error()
		return a.tell(r)
	}
	if err != nil {
		return err
	}
	e := plan.Entry
	r.Path, r.Outcome = e.Path(), adopted
	if plan.InUse != nil {
		r.Outcome, r.Reason = adoptLater, plan.InUse.Error()
	}
	if r.Loader, err = loaderOnly(sys, plan.References); err != nil {
		return err
	}
	if table, err = table.With(e); err != nil {
		return err
	}
	program, err := sys.Program("")
	if err != nil {
		return err
	}
	if !a.dryRun {
		if err := (boot.Opener{}).Postpone(e); err != nil {
			return err
		}
	}
	if err := a.change(ctx, sys, table, program); err != nil {
		return err
	}
	if plan.InUse == nil && !a.dryRun {
		if err := (boot.Opener{}).Open(ctx, []boot.Entry{e}); err != nil {
			return hinted{err, fmt.Sprintf(`the next boot opens it; "tidemark boot open %s" tries again`, e.Name)}
		}
		if err := boot.Unpostpone(e.Name); err != nil {
			return err
		}
		settle(ctx)
	}
	return a.tell(r)
}

// loaderOnly returns the references that the initramfs follows, or refuses.
func loaderOnly(sys *boot.System, found []adopt.Reference) ([]adopt.Reference, error) {
	follows := !slices.Contains(sys.Generators(), boot.Dracut)
	if i := slices.IndexFunc(found, func(r adopt.Reference) bool { return !r.Loader || !follows }); i < 0 {
		return found, nil
	}
	return nil, named(found)
}

// named refuses for the sake of settings.
func named(found []adopt.Reference) error {
	var lines []string
	for _, f := range found {
		lines = append(lines, "  "+f.String())
	}
	return fmt.Errorf("adopt: %w by the name that it has in\n%s", errNamed, strings.Join(lines, "\n"))
}

func (a *adoption) runUndo(ctx context.Context, sys *boot.System, table boot.Tab, device string) error {
	e, inTable := table.LinearOver(device)
	if !inTable {
		var left bool
		if e, left = boot.LinearLeft(device); !left {
			return hinted{fmt.Errorf("adopt: %s: %w", device, boot.ErrNoEntry), `"tidemark boot status" lists the devices that are adopted`}
		}
	}
	r := adoptReport{Device: device, Path: e.Path(), Outcome: adoptUndone, DryRun: a.dryRun}
	if names, err := snapshot.PersistentOf(e.Name); err != nil {
		return err
	} else if len(names) > 0 {
		return fmt.Errorf("adopt: %s: %w: plain, its persistent snapshots would be lost: \"tidemark snapshot destroy %s\" first", device, adopt.ErrRefused, strings.Join(names, " "))
	}
	found, err := adopt.ReferencesTo("/", e.Path())
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return named(found)
	}
	open := e.Open()
	if inTable {
		if err := a.uninstall(ctx, sys, table, e.Name); err != nil {
			return err
		}
	}
	if used := inuse.Check(e.Path()); a.dryRun && open && errors.Is(used, inuse.ErrInUse) {
		r.Outcome, r.Reason = adoptLater, used.Error()
	}
	if !open || a.dryRun {
		return a.tell(r)
	}
	err = boot.CloseLinear(e)
	if errors.Is(err, dm.ErrBusy) {
		r.Outcome, r.Reason = adoptLater, err.Error()
		return a.tell(r)
	}
	if err == nil {
		err = boot.LoseNames(e.Name)
	}
	settle(ctx)
	return errors.Join(err, a.tell(r))
}

// settle waits for udev to have changed the links.
func settle(ctx context.Context) {
	// Without udev there is nothing to wait for.
	exec.CommandContext(ctx, "udevadm", "settle").Run() //nolint:errcheck // see above
}

// tell prints the outcome.
func (a *adoption) tell(r adoptReport) error {
	if a.asJSON {
		return printJSON(a.show, r)
	}
	if r.DryRun {
		fmt.Fprint(a.show, "would be: ")
	}
	var err error
	switch {
	case r.Outcome == adoptNever:
		_, err = fmt.Fprintf(a.show, "%s: %s\n", r.Device, r.Reason)
	case r.Outcome == adoptLater && a.undo:
		_, err = fmt.Fprintf(a.show, "%s: plain again from the next boot on: %s\n", r.Device, r.Reason)
	case r.Outcome == adoptLater:
		_, err = fmt.Fprintf(a.show, "%s: %s from the next boot on: %s\n", r.Device, r.Path, r.Reason)
	case a.undo:
		_, err = fmt.Fprintf(a.show, "%s: plain again\n", r.Device)
	default:
		_, err = fmt.Fprintf(a.show, "%s: adopted as %s\n", r.Device, r.Path)
	}
	for _, l := range r.Loader {
		fmt.Fprintf(a.show, "note: %s: the initramfs mounts %s in its place\n", l, r.Path)
	}
	return err
}
