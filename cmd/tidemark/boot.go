package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"tidemark/boot"
)

func newBoot(g *globals) *cobra.Command {
	return command{
		use: "boot", short: "Open era and linear devices when the machine starts, root's too",
		long: `A device-mapper device is gone after a reboot. These commands make dm-era devices come up before anything on them is mounted: in the initramfs, for the filesystem that root is on, or by systemd, for others. They know initramfs-tools (Debian, Ubuntu) and dracut (Fedora, SUSE and Debian).

Linear devices, which are a plain disk or partition under another name, come up in the same way: see "tidemark adopt".

The devices are listed in /etc/tidemark/era.conf, under names that are the same at every boot. While an era device cannot be opened, its data device is not mounted: the boot stops with a shell and says what to do. Writes past an era device would be missing in the next copies. When a boot goes past all of it, with another initramfs, the system notes that, and marks from before are not believed. A system without tidemark, such as a rescue system, notes nothing: after it has written to the data device, fill the first block of the metadata with zeros.

Marks outlive reboots and power cuts: the kernel commits to the metadata before it lets a write through, so root's era device needs no closing at shutdown, where it could not be closed. It needs Linux 5.12, or a stable kernel with the fixes of March 2021.`,
		example: `# Root is on /dev/sda2, /dev/sda3 is empty and large enough for the metadata.
tidemark boot install --era root --data /dev/sda2 --meta /dev/sda3 --create 2M --update
tidemark boot status
# after the next boot
tidemark mirror /dev/mapper/root /backup/root.img`,
		exits: []exitCode{exitRefused},
	}.build(newBootInstall(g), newBootUninstall(g), newBootStatus(g), newBootOpen(g), newBootNote(g))
}

// bootSystem is the system that a command changes, with the options for that.
type bootSystem struct {
	root           string
	program        string
	dryRun, update bool
	force          bool
	out            io.Writer
}

// flags adds the options that "boot install" and "boot uninstall" share.
func (b *bootSystem) flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	addBootRoot(cmd, &b.root)
	flags.BoolVar(&b.dryRun, "dry-run", false, "print what would be done, and do nothing")
	flags.BoolVar(&b.update, "update", false, "make the initramfs images anew afterwards, with the commands that are printed otherwise")
	flags.BoolVar(&b.force, "force", false, "replace or remove also those of our files that were changed by hand")
}

func addBootRoot(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "root", "/", "`folder` of the system to set up, such as a mounted image")
}

// withSystem calls do with the system below root and its table.
func withSystem(root string, do func(*boot.System, boot.Tab) error) error {
	sys, err := boot.OpenSystem(root)
	if err != nil {
		return err
	}
	table, err := sys.Tab()
	if err == nil {
		err = do(sys, table)
	}
	return errors.Join(err, sys.Close())
}

// change makes the system's files follow a table.
func (b *bootSystem) change(ctx context.Context, sys *boot.System, table boot.Tab, program string) error {
	before, err := sys.Tab()
	if err != nil {
		return err
	}
	images := before.Early() || table.Early()
	if table.Early() {
		if err := sys.CheckEarly(program); err != nil {
			return err
		}
	}
	plan, err := sys.Plan(table, program, b.force)
	if err != nil {
		return err
	}
	if err := plan.Refused(); err != nil {
		return hinted{err, "look at what is in it; --force replaces files that were changed by hand, others must be moved away"}
	}
	for _, step := range plan.Steps {
		if step.Action != boot.Keep {
			fmt.Fprintf(b.out, "%s %s\n", step.Action, step.File.Path)
		}
	}
	if b.dryRun {
		return nil
	}
	if !plan.Changes() {
		fmt.Fprintln(b.out, "all files are as they should be")
	}
	if err := sys.Apply(plan); err != nil {
		return err
	}
	if images {
		if err := b.regenerate(ctx, sys.Generators()); err != nil {
			return err
		}
	}
	if b.root == "/" {
		// Without systemd and udev there is nothing to reload.
		exec.CommandContext(ctx, "systemctl", "daemon-reload").Run() //nolint:errcheck // see above
		exec.CommandContext(ctx, "udevadm", "control", "-R").Run()   //nolint:errcheck // see above
	}
	return nil
}

// regenerate makes the images anew, or says how.
func (b *bootSystem) regenerate(ctx context.Context, generators []boot.Generator) error {
	for _, g := range generators {
		args := g.Command()
		if !b.update {
			fmt.Fprintf(b.out, "run now: %s\n", strings.Join(b.within(args), " "))
			continue
		}
		args = b.within(args)
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return hinted{
				fmt.Errorf("boot: %s: %w", strings.Join(args, " "), err),
				"the files are in place; run it again when it works, before the next boot",
			}
		}
	}
	return nil
}

// within returns a command line that works in the system below b.root.
func (b *bootSystem) within(args []string) []string {
	if b.root == "/" {
		return args
	}
	return append([]string{"chroot", b.root}, args...)
}

func newBootUninstall(g *globals) *cobra.Command {
	b := &bootSystem{}
	var name, tracked string
	cmd := command{
		use: "uninstall [--era NAME | --track DEVICE]", short: "Boot without a device again",
		long: `Takes the device, an era device or a linear one, out of /etc/tidemark/era.conf, or all of them without --era and --track, and removes the files that "boot install" wrote and that nothing needs any more. Files that were changed by hand are refused, and stay, unless --force is given. The era device and its metadata are not touched.

What is written without the era device is not in its metadata. Before that metadata is used again, fill its first block with zeros: the marks of all copies must not be believed.`,
		example: "tidemark boot uninstall --era root --dry-run\ntidemark boot uninstall --era root --update",
		exits:   []exitCode{exitRefused},
		args:    cobra.NoArgs,
		run: func(cmd *cobra.Command, _ []string) error {
			b.out = cmd.OutOrStdout()
			return withSystem(b.root, func(sys *boot.System, table boot.Tab) error {
				if tracked != "" {
					return b.untrack(cmd.Context(), g, sys, table, tracked)
				}
				err := b.uninstall(cmd.Context(), sys, table, name)
				if root := table.TrackedRoot(); err == nil && name == "" && root != "" && sys.Running() && !b.dryRun {
					err = table.PlaceOf(g.stateDir, root).Remove()
				}
				return err
			})
		},
	}.build()
	b.flags(cmd)
	cmd.Flags().StringVar(&name, "era", "", "`name` of the device; all without it")
	cmd.Flags().StringVar(&tracked, "track", "", "`device` whose tracking is to be saved no more when the machine is shut down")
	cmd.MarkFlagsMutuallyExclusive("era", "track")
	return cmd
}

func (b *bootSystem) uninstall(ctx context.Context, sys *boot.System, table boot.Tab, name string) error {
	gone := table.Entries()
	if name != "" {
		e, err := table.Find(name)
		if err != nil {
			return err
		}
		gone = []boot.Entry{e}
	}
	var err error
	for _, disk := range table.Tracked() {
		if name != "" {
			break
		}
		if table, err = table.WithoutTracked(disk); err != nil {
			return err
		}
	}
	for _, e := range gone {
		if table, err = table.Without(e.Name); err != nil {
			return err
		}
		if e.Linear() && e.Open() && sys.Running() && !b.dryRun {
			if err := boot.KeepNames(e); err != nil {
				return err
			}
		}
	}
	program, err := sys.Program("")
	if err != nil && !table.Empty() {
		return err
	}
	if err := b.change(ctx, sys, table, program); err != nil || b.dryRun {
		return err
	}
	for _, e := range gone {
		if sys.Running() {
			if err := boot.Unpostpone(e.Name); err != nil {
				return err
			}
		}
		fmt.Fprintf(b.out, "where %s is named (root= of the boot loader, /etc/fstab), name %s again\n", e.Path(), e.Data)
		if !e.Linear() {
			fmt.Fprintf(b.out, "before the metadata is used again: dd if=/dev/zero of=%s bs=4096 count=1\n", boot.DevicePath(e.Meta))
		}
	}
	return nil
}
