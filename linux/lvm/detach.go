package lvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"tidemark/linux/dm"
	"tidemark/linux/dmsnap"
	"tidemark/linux/sysfs"
)

// halfDone is the tag of a volume to which a store is being applied, or was applied in part.
const halfDone = "tidemark_half_applied"

// uuidPrefix starts the device-mapper UUIDs of our own devices; LVM's UUID follows.
const uuidPrefix = "TIDEMARK-APPLY-"

// patience is how long programs that open a device for a moment, as udev does, are waited for.
const patience = 10 * time.Second

// Detached is a volume and a snapshot of it that are out of use: LVM has their devices down,
// and devices of our own lead to what they consist of.
//
// # What a crash leaves
//
// A snapshot reads the same before, while and after its store is applied to its origin: a chunk
// that has an exception is read from the store, and any other is not touched. So at whatever
// moment a run ends, another one brings it to its end, also when the volume was written to in
// between, as long as the store does not overflow. The volume itself is neither old nor new
// meanwhile; it carries a tag, and is not activated by itself, from before the first byte is
// written until the last is on the disk. Our devices go with the machine, or are removed by
// the next run; one that another process has open is taken for a run under way.
type Detached struct {
	Origin, Store string // paths of block devices: the volume's content, and the snapshot's store

	ctl      *dm.Control
	volume   Volume
	made     []string // names of our devices
	held     *os.File // the store, so that nobody takes our devices for left behind
	activate bool     // when all is well again
	torn     bool     // neither old nor new, by this run or one before
}

// Detach takes a volume and its snapshot out of use. The error wraps ErrRefused or ErrInUse
// when that is not to be; then nothing has changed. After any other error they are as they
// were, or the error says how they are.
func Detach(ctx context.Context, ctl *dm.Control, origin, snapshot Volume) (*Detached, error) {
	if err := Detachable(ctx, origin, snapshot); err != nil {
		return nil, err
	}
	d := &Detached{ctl: ctl, volume: origin, torn: slices.Contains(origin.Tags, halfDone)}
	left, err := d.removeLeft(snapshot)
	if err != nil {
		return nil, err
	}
	d.activate = origin.Active || left || d.torn
	if !origin.Active {
		if err := Activate(ctx, origin); err != nil {
			return nil, err
		}
	}
	if err := d.takeDown(ctx, snapshot); err != nil {
		return nil, errors.Join(err, d.giveUp())
	}
	return d, nil
}

// Layers returns the paths of LVM's own devices for what an active volume and a snapshot of it
// consist of: the volume's content, and the snapshot's store. Both are in use, and are good
// for reading.
func Layers(ctl *dm.Control, origin, snapshot Volume) (content, store string, err error) {
	d := &Detached{ctl: ctl, volume: origin}
	var paths [2]string
	for i, uuid := range []string{origin.DMUUID("real"), snapshot.DMUUID("cow")} {
		info, ok, err := d.byUUID(uuid)
		if err != nil {
			return "", "", err
		}
		if !ok && slices.Contains(origin.Tags, halfDone) {
			return "", "", fmt.Errorf("lvm: %s is %w, and stays down until a run has finished it", origin.FullName(), ErrHalfDone)
		}
		if !ok {
			return "", "", fmt.Errorf("lvm: %s is not active: \"lvchange -ay %s\" activates it", origin.FullName(), origin.FullName())
		}
		if paths[i], err = sysfs.Node(info.Dev()); err != nil {
			return "", "", fmt.Errorf("lvm: %w", err)
		}
	}
	return paths[0], paths[1], nil
}

// takeDown makes our devices and has LVM take down its own.
func (d *Detached) takeDown(ctx context.Context, snapshot Volume) error {
	if err := d.duplicate(snapshot); err != nil {
		return err
	}
	if err := Deactivate(ctx, d.volume); err != nil {
		if failed := (*Error)(nil); errors.As(err, &failed) && strings.Contains(failed.Said, "in use") {
			err = fmt.Errorf("%w: %w", ErrInUse, err)
		}
		return err
	}
	if err := d.down(snapshot); err != nil {
		return err
	}
	// A pvmove in between would have moved what our devices lead to.
	now, err := Find(ctx, d.volume.FullName())
	if err == nil && now.Seqno != d.volume.Seqno {
		err = fmt.Errorf("lvm: %s: %w: its volume group was changed at the same moment", d.volume.FullName(), ErrInUse)
	}
	return err
}

// ourName is the name of our device for one of LVM's.
func ourName(v Volume) string { return "tidemark-" + v.Device() }

// ourUUID is the UUID of our device for one of LVM's.
func ourUUID(lvm string) string { return uuidPrefix + strings.TrimPrefix(lvm, dmPrefix) }

// byUUID returns the device of that UUID; false when there is none.
func (d *Detached) byUUID(uuid string) (dm.Info, bool, error) {
	all, err := d.ctl.List()
	if err != nil {
		return dm.Info{}, false, err
	}
	for _, e := range all {
		// The list tells UUIDs from Linux 5.13 on, and a kernel of before can be asked.
		info, err := d.ctl.Info(e.Name)
		if errors.Is(err, dm.ErrNotFound) {
			continue
		}
		if err != nil || info.UUID == uuid {
			return info, err == nil, err
		}
	}
	return dm.Info{}, false, nil
}

// removeLeft removes what a run that was killed has left, and reports whether there was
// anything.
func (d *Detached) removeLeft(snapshot Volume) (left bool, err error) {
	for _, uuid := range []string{d.volume.DMUUID("real"), snapshot.DMUUID("cow")} {
		info, ok, err := d.byUUID(ourUUID(uuid))
		if err != nil {
			return left, err
		}
		if !ok {
			continue
		}
		left = true
		err = d.ctl.Remove(info.Name, dm.RemoveOptions{})
		if errors.Is(err, dm.ErrBusy) {
			return left, fmt.Errorf("lvm: %s: %w: another run applies a store to it: %w", d.volume.FullName(), ErrInUse, err)
		}
		if err != nil {
			return left, err
		}
	}
	return left, nil
}

// duplicate makes our own devices for the origin and the store, with the tables that LVM's have.
func (d *Detached) duplicate(snapshot Volume) error {
	info, ok, err := d.byUUID(snapshot.DMUUID(""))
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("lvm: %s: LVM says that it is active, and it has no device", snapshot.FullName())
	}
	live, err := dmsnap.Get(d.ctl, info.Name)
	if err != nil {
		return err
	}
	usage, err := live.Usage(d.ctl)
	if err != nil {
		return err
	}
	if live.Merge || !live.Persistent || usage.State != dmsnap.Valid {
		return fmt.Errorf("lvm: %s: %w: the kernel says that it is %q", snapshot.FullName(), ErrRefused, usage.State)
	}
	if d.Origin, err = d.copyOf(live.Origin, d.volume.DMUUID("real"), ourName(d.volume), dm.LoadOptions{}); err != nil {
		return err
	}
	d.Store, err = d.copyOf(live.Store, snapshot.DMUUID("cow"), ourName(snapshot), dm.LoadOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	d.held, err = os.Open(d.Store)
	return err
}

// copyOf makes a device with the table of the one with that number, which must have LVM's UUID
// that is given, and returns its path.
func (d *Detached) copyOf(dev sysfs.Dev, uuid, name string, o dm.LoadOptions) (string, error) {
	info, err := d.ctl.Find(dev.Major, dev.Minor)
	if err != nil {
		return "", err
	}
	if info.UUID != uuid {
		return "", fmt.Errorf("lvm: %s: %w: its snapshot lies on %s (%s), which is not LVM's device for it", d.volume.FullName(), ErrRefused, info.Path(), info.UUID)
	}
	table, _, err := d.ctl.Table(info.Name)
	if err != nil {
		return "", err
	}
	for _, t := range table {
		// What else there is (RAID, cache, integrity) keeps state of its own, of which there
		// can be one only.
		if t.Type != "linear" && t.Type != "striped" {
			return "", fmt.Errorf("lvm: %s: %w: %s has a target %q; only linear and striped volumes can be applied to: use \"lvconvert --merge\"", d.volume.FullName(), ErrRefused, info.Path(), t.Type)
		}
	}
	if _, err := d.ctl.Create(name, ourUUID(uuid)); err != nil {
		return "", err
	}
	d.made = append(d.made, name)
	if _, err := d.ctl.Load(name, table, o); err != nil {
		return "", err
	}
	ours, err := d.ctl.ResumeHidden(name)
	if err != nil {
		return "", err
	}
	return sysfs.Node(ours.Dev())
}

// down makes sure that nothing but our devices leads to the volumes any more.
func (d *Detached) down(snapshot Volume) error {
	for _, uuid := range []string{d.volume.DMUUID(""), d.volume.DMUUID("real"), snapshot.DMUUID(""), snapshot.DMUUID("cow")} {
		info, ok, err := d.byUUID(uuid)
		if err != nil {
			return err
		}
		if ok {
			return fmt.Errorf("lvm: %s: %w: LVM says that it is down, but %s is there", d.volume.FullName(), ErrInUse, info.Path())
		}
	}
	return nil
}

// Begin is called before the first byte is written to Origin: from here on the volume is not
// activated by itself, as when the machine boots, until Attach has been told that all is done.
func (d *Detached) Begin(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	err := d.tag(ctx, "--addtag", halfDone, "--setactivationskip", "y")
	if err != nil && !d.torn {
		return errors.Join(err, d.tag(ctx, d.untag()...)) // nothing was written
	}
	d.torn = true
	return err
}

// tag changes what LVM knows of the volume, on the disk. LVM does not flush what it writes, and
// the disk must have it before what follows.
func (d *Detached) tag(ctx context.Context, args ...string) error {
	if err := change(ctx, "lvchange", append(args, d.volume.FullName())...); err != nil {
		return err
	}
	f, err := os.Open(d.Origin)
	if err != nil {
		return fmt.Errorf("lvm: %w", err)
	}
	return errors.Join(f.Sync(), f.Close())
}

// Attach activates the volumes again, where they were active, and takes our devices away. When
// the volume is neither old nor new, it stays down until done says that all has been written
// and is on the disk; the error says so. Attach must be called once, whatever happened.
func (d *Detached) Attach(done bool) error {
	ctx := context.Background() // also when the run was interrupted
	name := d.volume.FullName()
	var err error
	switch {
	case d.torn && !done:
		err = fmt.Errorf("lvm: %s is %w, and stays down: the same command again finishes it; \"lvchange -ay -K %s\" activates it as it is", name, ErrHalfDone, name)
	case d.torn:
		err = d.tag(ctx, d.untag()...)
	}
	if err == nil && d.activate {
		err = Activate(ctx, d.volume)
	}
	// Last, for they tell the next run that this one was killed.
	return errors.Join(err, d.removeOurs())
}

// untag takes back what Begin did. A volume that was to be skipped before stays so, unless a
// run was killed in between.
func (d *Detached) untag() []string {
	args := []string{"--deltag", halfDone}
	if !d.volume.SkipActivation || slices.Contains(d.volume.Tags, halfDone) {
		args = append(args, "--setactivationskip", "n")
	}
	return args
}

// giveUp undoes a Detach that failed.
func (d *Detached) giveUp() error {
	back := Deactivate
	if d.volume.Active {
		back = Activate
	}
	return errors.Join(back(context.Background(), d.volume), d.removeOurs())
}

// removeOurs removes our devices.
func (d *Detached) removeOurs() error {
	var errs []error
	if d.held != nil {
		errs = append(errs, d.held.Close())
		d.held = nil
	}
	for _, name := range slices.Backward(d.made) {
		errs = append(errs, d.ctl.Remove(name, dm.RemoveOptions{Patience: patience}))
	}
	d.made = nil
	return errors.Join(errs...)
}
