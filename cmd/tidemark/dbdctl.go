package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"tidemark/boot"
	"tidemark/format/datto"
	"tidemark/linux/dmhold"
	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
	"tidemark/snapshot"
)

// dbdctlUsage is that of dbdctl 0.12, and what there is here beside it.
const dbdctlUsage = `Usage:
	dbdctl setup-snapshot [-c <cache size>] [-f fallocate] <block device> <cow file> <minor>
	dbdctl reload-snapshot [-c <cache size>] <block device> <cow file> <minor>
	dbdctl reload-incremental [-c <cache size>] <block device> <cow file> <minor>
	dbdctl destroy <minor>
	dbdctl transition-to-incremental <minor>
	dbdctl transition-to-snapshot [-f fallocate] <cow file> <minor>
	dbdctl reconfigure [-c <cache size>] <minor>
	dbdctl expand-cow-file <size> <minor>
	dbdctl reconfigure-auto-expand [-r <reserved space>] <step size> <minor>
	dbdctl info [<minor>]
	dbdctl help

This is tidemark, with the kernel's dm-snapshot in the place of the driver dattobd. The block device
is one of device-mapper, or a partition that "tidemark adopt" has put a table over.

-f, and the sizes of expand-cow-file and reconfigure-auto-expand, are in MiB. -c is taken, and has no
effect: there is no cache.
`

const (
	dattoMinors = 24  // max_snap_devices, the driver's default
	dbdctlFails = 255 // the -1 of its main
	labelDevice = "block_device"
	labelCOW    = "cow_file"
	// dbdctlFreeze bounds how long writers wait. The driver has no bound.
	dbdctlFreeze = time.Minute
)

// dbdctl is the command line of dbdctl.
type dbdctl struct {
	g                     *globals
	out                   io.Writer
	cache, size, reserved uint64
}

// dbdctlCommand is a command of dbdctl.
type dbdctlCommand struct {
	flags   string // the options that it has
	args    int    // how many, the minor included
	numbers int    // so many of the first are numbers
	run     func(d *dbdctl, ctx context.Context, args []string, minor int) error
}

func dbdctlCommands() map[string]dbdctlCommand {
	return map[string]dbdctlCommand{
		"setup-snapshot":            {"cf", 3, 0, (*dbdctl).setup},
		"reload-snapshot":           {"c", 3, 0, (*dbdctl).reloadSnapshot},
		"reload-incremental":        {"c", 3, 0, (*dbdctl).reloadIncremental},
		"destroy":                   {"", 1, 0, (*dbdctl).destroy},
		"transition-to-incremental": {"", 1, 0, (*dbdctl).toIncremental},
		"transition-to-snapshot":    {"f", 2, 0, (*dbdctl).toSnapshot},
		"reconfigure":               {"c", 1, 0, (*dbdctl).reconfigure},
		"expand-cow-file":           {"", 2, 1, (*dbdctl).expand},
		"reconfigure-auto-expand":   {"r", 2, 1, (*dbdctl).autoExpand},
		"info":                      {"", 1, 0, (*dbdctl).info},
	}
}

// asDbdctl answers to dbdctl, the control program of dattobd.
func asDbdctl(ctx context.Context, args []string, std stdio) error {
	word := ""
	if len(args) > 0 {
		word = args[0]
	}
	d := &dbdctl{g: fromEnvironment(), out: std.out}
	c, known := dbdctlCommands()[word]
	switch {
	case word == "help", word == "-h", word == "--help":
		_, err := fmt.Fprint(std.out, dbdctlUsage)
		return err
	case word == "-V", word == "--version":
		_, err := fmt.Fprintf(std.out, "dbdctl (tidemark %s)\n", versionText())
		return err
	case word == "info" && len(args) == 1:
		return d.told(d.infoAll(ctx), std.errs)
	case !known:
		fmt.Fprint(std.out, dbdctlUsage)
		return exitStatus(dbdctlFails)
	}
	operands, minor, err := d.parse(c, args[1:])
	if err != nil {
		fmt.Fprintf(std.errs, "dbdctl: %v\nerror interpreting %s parameters: Invalid argument\n", err, strings.ReplaceAll(word, "-", " "))
		fmt.Fprint(std.out, dbdctlUsage)
		return exitStatus(dbdctlFails)
	}
	return d.told(c.run(d, ctx, operands, minor), std.errs)
}

// told tells of an error: why, what to do, and what dbdctl says.
func (d *dbdctl) told(err error, errs io.Writer) error {
	if err == nil {
		return nil
	}
	fmt.Fprintf(errs, "dbdctl: %v\n", err)
	if hint := hintOf(err); hint != "" {
		fmt.Fprintf(errs, "dbdctl: hint: %s\n", hint)
	}
	text := driverError(err).Error()
	fmt.Fprintf(errs, "driver returned an error performing specified action. check dmesg for more info: %s%s\n", strings.ToUpper(text[:1]), text[1:])
	return exitStatus(dbdctlFails)
}

// driverError is the error that the driver has for one of ours.
func driverError(err error) syscall.Errno {
	for _, c := range []struct {
		is    error
		errno syscall.Errno
	}{
		{snapshot.ErrInUse, syscall.EBUSY},
		{snapshot.ErrNoRoom, syscall.ENOSPC},
		{fs.ErrExist, syscall.EEXIST},
		{dmhold.ErrFrozen, syscall.EBUSY},
		{dmhold.ErrExpired, syscall.EBUSY},
	} {
		if errors.Is(err, c.is) {
			return c.errno
		}
	}
	errno := syscall.EINVAL
	errors.As(err, &errno)
	return errno
}

// parse takes a command line apart. Numbers are digits alone.
func (d *dbdctl) parse(c dbdctlCommand, args []string) (operands []string, minor int, err error) {
	flags := pflag.NewFlagSet("dbdctl", pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	texts := map[string]*string{}
	for f := range strings.SplitSeq(c.flags, "") {
		texts[f] = flags.StringP("option-"+f, f, "0", "")
	}
	if err := flags.Parse(args); err != nil {
		return nil, 0, err
	}
	for f, to := range map[string]*uint64{"c": &d.cache, "f": &d.size, "r": &d.reserved} {
		if text := texts[f]; text != nil {
			if *to, err = digits(*text); err != nil {
				return nil, 0, err
			}
		}
	}
	operands = flags.Args()
	if len(operands) != c.args {
		return nil, 0, fmt.Errorf("%d arguments, want %d", len(operands), c.args)
	}
	for _, text := range operands[:c.numbers] {
		if _, err := digits(text); err != nil {
			return nil, 0, err
		}
	}
	n, err := digits(operands[c.args-1])
	return operands[:c.args-1], int(min(n, 1<<16)), err
}

func digits(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 43) // of MiB, in bytes it is below 1<<63
	if err != nil {
		return 0, fmt.Errorf("%q is no number", text)
	}
	return n, nil
}

// fails returns an error as the driver has it, with why.
func fails(errno syscall.Errno, format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errno)
}

var errForeign = fmt.Errorf("was not made by setup-snapshot: %w", syscall.EBUSY)

// record returns the snapshot of a minor, nil for none; up says that it was made, or reloaded, in this boot. What a command
// that was cut off has left is repaired first.
func (d *dbdctl) record(ctx context.Context, minor int) (s *snapshot.Snapshot, up bool, err error) {
	if minor >= dattoMinors {
		return nil, false, fails(syscall.EINVAL, "minors are 0 to %d", dattoMinors-1)
	}
	name := "datto" + strconv.Itoa(minor)
	s, err = snapshot.Find(d.g.snapshotOptions(), name)
	if err == nil && !s.Up {
		_, left := snapshot.Repair(ctx, d.g.snapshotOptions())
		if s, err = snapshot.Find(d.g.snapshotOptions(), name); err == nil && !s.Up {
			err = left // that others are left is none of its business
		}
	}
	if errors.Is(err, snapshot.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	if s.Link != link(minor) || len(s.Volumes) != 1 || s.Volumes[0].Chain == nil {
		return nil, false, fmt.Errorf(`the snapshot %s %w: "tidemark snapshot destroy %s" removes it`, s.Name, errForeign, s.Name)
	}
	before, err := s.OfBefore()
	return s, !before, err
}

func link(minor int) string { return "/dev/datto" + strconv.Itoa(minor) }

// find returns the snapshot of a minor in use.
func (d *dbdctl) find(ctx context.Context, minor int) (*snapshot.Snapshot, error) {
	s, up, err := d.record(ctx, minor)
	if err == nil && !up {
		err = fails(syscall.ENOENT, "there is no snapshot with the minor %d", minor)
	}
	return s, err
}

// healthy is find of one that has not failed, and is in a mode.
func (d *dbdctl) healthy(ctx context.Context, minor int, incremental bool) (*snapshot.Snapshot, error) {
	s, err := d.find(ctx, minor)
	if err != nil {
		return nil, err
	}
	st, err := s.Status()
	if err == nil && st.Lost != "" {
		err = fails(syscall.EINVAL, "the snapshot has failed: %s", st.Lost)
	}
	if err == nil && s.Incremental != incremental {
		err = fails(syscall.EINVAL, "it is not in the mode for that")
	}
	return s, err
}

// idle refuses a minor that is up. It returns the snapshot of before that has the minor, or nil, and
// the device of device-mapper that a block device stands for.
func (d *dbdctl) idle(ctx context.Context, minor int, bdev string) (old *snapshot.Snapshot, device string, err error) {
	old, up, err := d.record(ctx, minor)
	if err == nil && up {
		err = fails(syscall.EBUSY, "there is a snapshot with the minor %d", minor)
	}
	if err == nil {
		device, err = adoptedOver(bdev)
	}
	return old, device, err
}

// setup is setup-snapshot.
func (d *dbdctl) setup(ctx context.Context, args []string, minor int) error {
	old, device, err := d.idle(ctx, minor, args[0])
	if err != nil {
		return err
	}
	if err := d.untraced(ctx, device); err != nil {
		return err
	}
	cow, err := cowFile(args[1], device)
	if err != nil {
		return err
	}
	lasts := outlives([]snapshot.Device{{Path: device}})
	if lasts != nil && !errors.Is(lasts, snapshot.ErrNotKept) {
		return lasts
	}
	if old != nil { // of before a boot, and not reloaded
		if err := old.Destroy(ctx, true); err != nil {
			return err
		}
	}
	_, err = snapshot.Create(ctx, d.g.snapshotOptions(), snapshot.Request{
		Name: "datto" + strconv.Itoa(minor), Link: link(minor), Track: true, Persistent: lasts == nil, MaxFreeze: dbdctlFreeze, Reserve: d.reserve(),
		Devices: []snapshot.Device{{Path: device, Store: cow, Replace: true, Size: d.storeSize()}},
		Labels:  map[string]string{labelDevice: args[0], labelCOW: cow},
	})
	return err
}

// storeSize is what -f says, in bytes, or the least that a store has.
func (d *dbdctl) storeSize() int64 {
	if d.size == 0 {
		return 0
	}
	return max(int64(d.size)<<20, snapshot.MinStore)
}

// reserve is what a store leaves of the room: what -f says may take all.
func (d *dbdctl) reserve() int64 { return int64(min(d.size, 1)) }

// adoptedOver returns the device of device-mapper to take a snapshot of: that over an adopted partition,
// where that is named.
func adoptedOver(path string) (string, error) {
	if _, err := mounts.DeviceOf(path); err != nil {
		return "", err
	}
	if e, ok := boot.LinearLeft(path); ok {
		return e.Path(), nil
	}
	return path, nil
}

// untraced refuses a device that has a minor.
func (d *dbdctl) untraced(ctx context.Context, device string) error {
	dev, err := mounts.DeviceOf(device)
	if err != nil {
		return err
	}
	for minor := range dattoMinors {
		s, up, err := d.record(ctx, minor)
		if err != nil || !up {
			continue // none of setup-snapshot
		}
		if of, err := mounts.DeviceOf("/dev/mapper/" + s.Volumes[0].Name); err == nil && of == dev {
			return fails(syscall.EINVAL, "%s has the minor %d already", device, minor)
		}
	}
	return nil
}

// cowFile judges the path of a COW file on a device, and returns it absolute.
func cowFile(path, device string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return "", fails(syscall.EISDIR, "%s", path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	dev, err := mounts.DeviceOf(device)
	if st, ok := dir.Sys().(*syscall.Stat_t); err == nil && (!ok || sysfs.DevOf(st.Dev) != dev) {
		err = fails(syscall.EINVAL, "%s does not lie on %s", path, device)
	}
	return path, err
}

func (d *dbdctl) destroy(ctx context.Context, _ []string, minor int) error {
	s, err := d.find(ctx, minor)
	if err != nil {
		return err
	}
	return s.Destroy(ctx, false)
}

func (d *dbdctl) toIncremental(ctx context.Context, _ []string, minor int) error {
	s, err := d.healthy(ctx, minor, false)
	if err != nil {
		return err
	}
	return s.ToIncremental(ctx)
}

// toSnapshot is transition-to-snapshot. The list of changes takes the place of the COW file before.
func (d *dbdctl) toSnapshot(ctx context.Context, args []string, minor int) error {
	s, err := d.healthy(ctx, minor, true)
	if err != nil {
		return err
	}
	cow, err := cowFile(args[0], "/dev/mapper/"+s.Volumes[0].Name)
	if err != nil {
		return err
	}
	before := s.Labels[labelCOW]
	if cow == before {
		return fails(syscall.EINVAL, "%s is to have the list of changes: give another COW file", cow)
	}
	return s.ToSnapshot(ctx, snapshot.Next{
		Stores: []snapshot.Device{{Store: cow, Replace: true, Size: d.storeSize()}}, Lists: []string{before},
		Labels:  map[string]string{labelDevice: s.Labels[labelDevice], labelCOW: cow},
		Reserve: d.reserve(), MaxFreeze: dbdctlFreeze,
	})
}

// reloadSnapshot takes up what the boot has brought up.
func (d *dbdctl) reloadSnapshot(ctx context.Context, args []string, minor int) error {
	return d.reload(ctx, args, minor, false)
}

// reloadIncremental takes up what the tracker vouches for.
func (d *dbdctl) reloadIncremental(ctx context.Context, args []string, minor int) error {
	return d.reload(ctx, args, minor, true)
}

func (d *dbdctl) reload(ctx context.Context, args []string, minor int, incremental bool) error {
	s, device, err := d.idle(ctx, minor, args[0])
	if err != nil {
		return err
	}
	switch {
	case s == nil || !incremental && !s.Persistent && !s.Incremental:
		why := "none was made"
		if lasts := outlives([]snapshot.Device{{Path: device}}); !incremental && lasts != nil {
			why = "a snapshot ends with the boot: " + lasts.Error()
		}
		return fails(syscall.EINVAL, "there is nothing to reload for the minor %d: %s: make a new snapshot", minor, why)
	case filepath.Base(device) != s.Volumes[0].Name && args[0] != s.Labels[labelDevice]:
		return fails(syscall.EINVAL, "the minor %d was of %s", minor, s.Labels[labelDevice])
	case !strings.HasSuffix(s.Labels[labelCOW], filepath.Clean("/"+args[1])):
		return fails(syscall.EINVAL, "the minor %d had the COW file %s", minor, s.Labels[labelCOW])
	}
	return s.Reload(ctx, incremental)
}

// reconfigure has no cache to change the size of.
func (d *dbdctl) reconfigure(ctx context.Context, _ []string, minor int) error {
	s, err := d.find(ctx, minor)
	if err != nil {
		return err
	}
	if st, err := s.Status(); err != nil || st.Lost != "" {
		return errors.Join(err, fails(syscall.EINVAL, "the snapshot has failed: %s", st.Lost))
	}
	return nil
}

// growing returns a snapshot that has a store, and by how many MiB it is to grow.
func (d *dbdctl) growing(ctx context.Context, args []string, minor int) (*snapshot.Snapshot, int64, error) {
	s, err := d.healthy(ctx, minor, false)
	if err != nil {
		return nil, 0, err
	}
	more, err := digits(args[0])
	return s, int64(min(more, 1<<30)), err
}

// expand is expand-cow-file.
func (d *dbdctl) expand(ctx context.Context, args []string, minor int) error {
	s, more, err := d.growing(ctx, args, minor)
	if err != nil {
		return err
	}
	v := s.Volumes[0]
	return s.Grow(ctx, v, v.Store.Size+more<<20)
}

// autoExpand is reconfigure-auto-expand. What grows the COW file is a service, until the snapshot
// ends or becomes incremental.
func (d *dbdctl) autoExpand(ctx context.Context, args []string, minor int) error {
	s, step, err := d.growing(ctx, args, minor)
	if err != nil {
		return err
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil { // see sd_booted(3)
		return fails(syscall.EOPNOTSUPP, `there is no systemd to run a service that watches the COW file: run "tidemark snapshot events %s --follow --auto-grow %dM --limit SIZE"`, s.Name, step)
	}
	var room unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(s.Labels[labelCOW]), &room); err != nil {
		return fmt.Errorf("%s: %w", s.Labels[labelCOW], err)
	}
	limit := (s.Volumes[0].Store.Size+int64(room.Bavail)*room.Bsize)>>20 - int64(min(d.reserved, 1<<30))
	program, err := os.Executable()
	if err != nil {
		return err
	}
	unit := "tidemark-grow-" + s.Name + ".service"
	exec.CommandContext(ctx, "systemctl", "stop", unit).Run() //nolint:errcheck // most often there is none
	if step == 0 {
		return nil
	}
	out, err := exec.CommandContext(ctx, "systemd-run", "--quiet", "--collect", "--unit="+unit, program, "--state-dir="+d.g.stateDir,
		"snapshot", "events", s.Name, "--follow", fmt.Sprintf("--auto-grow=%dM", step), fmt.Sprintf("--limit=%dM", max(limit, 1))).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemd-run: %w: %s", err, out)
	}
	return nil
}

// knownSnapshot tells what is known of a snapshot device of ours, for cowfiles.Options.
func (g *globals) knownSnapshot(path string) (*datto.DeviceInfo, error) {
	dev, err := mounts.DeviceOf(path)
	if err != nil {
		return nil, nil //nolint:nilerr // a file with an image is none of ours
	}
	list, err := snapshot.List(g.snapshotOptions())
	if err != nil {
		return nil, err
	}
	for _, s := range list {
		if ended, err := s.Ended(); err != nil || ended || s.Incremental {
			continue
		}
		i := slices.IndexFunc(s.Volumes, func(v *snapshot.Volume) bool {
			image, err := mounts.DeviceOf(s.Image(v))
			return v.Chain != nil && err == nil && image == dev
		})
		if i >= 0 {
			known, err := dattoOf(s, s.Volumes[i])
			return &known, err
		}
	}
	return nil, nil
}
