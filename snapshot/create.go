package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"slices"
	"strings"
	"time"

	"tidemark/block"
	"tidemark/linux/dm"
	"tidemark/linux/dmhold"
	"tidemark/linux/dmsnap"
	"tidemark/linux/lvm"
	"tidemark/linux/sysfs"
	"tidemark/view"
)

// Create takes a snapshot of all devices at one instant. What a crash left is ended first. The error
// wraps one of the package's, or one of package dmhold's; then there is no snapshot, and every
// device has its own table.
func Create(ctx context.Context, o Options, req Request) (_ *Snapshot, err error) {
	unlock, err := o.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	_, left := o.repair(ctx)
	ctl, err := dm.Open()
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	s, err := o.begin(ctx, ctl, req, nil)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.letGo())
		}
	}()
	if err == nil {
		err = s.unhindered(left)
	}
	if err != nil {
		return nil, err
	}
	if s.Transient {
		if err := s.hold(); err != nil {
			return nil, err
		}
	}
	if err := s.write(); err != nil {
		return nil, err
	}
	if req.Track {
		err = s.createTracked(ctx, ctl, req)
	} else {
		err = s.create(ctx, ctl, req)
	}
	if err == nil {
		_, err = s.note()
	}
	if err == nil {
		s.Up = true
		err = s.write()
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", errors.Join(err, s.takeApart(context.WithoutCancel(ctx), ctl, true)))
	}
	return s, nil
}

// begin judges a request, and makes nothing. Before is the incremental snapshot that it is to follow,
// or nil.
func (o Options) begin(ctx context.Context, ctl *dm.Control, req Request, before *Snapshot) (*Snapshot, error) {
	s := &Snapshot{
		Version: recordVersion, Name: req.Name, Created: time.Now().UTC().Truncate(time.Second), Chunk: req.Chunk, Writable: req.Writable, Transient: req.Transient, Persistent: req.Persistent,
		Link: req.Link, Labels: req.Labels, o: o,
	}
	if s.Chunk == 0 {
		s.Chunk = DefaultChunk
	}
	if s.Chunk < 4<<10 || s.Chunk > 1<<20 || bits.OnesCount64(uint64(s.Chunk)) != 1 {
		return s, fmt.Errorf("snapshot: chunks of %d bytes: a chunk is a power of two from 4 KiB to 1 MiB", s.Chunk)
	}
	list, err := List(o)
	if err != nil {
		return s, err
	}
	all, err := ctl.List()
	if err != nil {
		return s, err
	}
	if err := s.judgeTracked(req); err != nil {
		return s, err
	}
	list = slices.DeleteFunc(list, func(o *Snapshot) bool { return before != nil && o.Name == before.Name })
	if err := s.name(list, all); err != nil {
		return s, err
	}
	if s.Boot, err = sysfs.BootID(); err != nil {
		return s, err
	}
	if slices.ContainsFunc(req.Devices, func(d Device) bool { return d.Store == LVM }) {
		return s, s.planLVM(ctx, ctl, req)
	}
	if err := s.holdGroups(ctx, ctl, req.Devices); err != nil {
		return s, err
	}
	for _, d := range req.Devices {
		if err := s.plans(ctx, ctl, req, d); err != nil {
			return s, err
		}
	}
	for _, v := range s.Volumes {
		if err := errors.Join(s.complete(v), s.apart(v, list)); err != nil {
			return s, fmt.Errorf("snapshot: %s: %w", v.Name, err)
		}
	}
	return s, nil
}

// plans judges one device of a request, and plans its store.
func (s *Snapshot) plans(ctx context.Context, ctl *dm.Control, req Request, d Device) error {
	v, err := origin(ctl, d.Path)
	if err != nil {
		return err
	}
	if d.Dev != (sysfs.Dev{}) && d.Dev != v.Dev {
		return fmt.Errorf("snapshot: %s: %w: it leads to another device by now", d.Path, ErrUnfit)
	}
	if slices.ContainsFunc(s.Volumes, func(o *Volume) bool { return o.Dev == v.Dev }) {
		return fmt.Errorf("snapshot: %s: it is given twice", d.Path)
	}
	if n := len(uuid(s.copied(v))); n > 128 {
		return fmt.Errorf("snapshot: %s: %w: its name is too long for those of the devices that are made from it", d.Path, ErrUnfit)
	}
	if !s.Transient && d.Size == 0 {
		if v.share, err = s.o.choose(ctx, v); err == nil {
			err = v.lazily()
		}
	}
	if err == nil {
		err = s.plan(v, d, req.Reserve)
	}
	if err != nil {
		return fmt.Errorf("snapshot: %s: %w", d.Path, err)
	}
	if err := s.free(ctl, v); err != nil {
		return fmt.Errorf("snapshot: %s: %w", d.Path, err)
	}
	if err := errors.Join(v.first(ctl), s.lasts(v)); err != nil {
		return fmt.Errorf("snapshot: %s: %w", d.Path, err)
	}
	if req.Track && v.Era {
		return fmt.Errorf("snapshot: %s: %w: dm-era follows what changes of it, and eBPF would lose its mark each time that its table changes: take one without --track", d.Path, ErrUnfit)
	}
	if req.Track {
		v.Chain = newChain()
	}
	s.Volumes = append(s.Volumes, v)
	return nil
}

// first refuses a store inside where there is a snapshot already: the file gets blocks that may have
// been another file's at the instant of that one, and what goes to them passes below the origin, so
// that nobody would copy what that one shows.
func (v *Volume) first(ctl *dm.Control) error {
	had, err := v.snapshotted(ctl)
	if err == nil && had && v.Store.Kind == Inside {
		err = fmt.Errorf("%w: there is a snapshot of it already, which a file that is made now would spoil: give another place for the store", ErrStore)
	}
	return err
}

// judgeTracked refuses images that nothing could list the changes of, and a link that is in the way.
func (s *Snapshot) judgeTracked(req Request) error {
	if req.Track && req.Writable {
		return fmt.Errorf("snapshot: an image that is written to holds what no list of changes has: take a second snapshot that is writable, and not tracked")
	}
	if _, err := os.Lstat(req.Link); req.Link != "" && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, fmt.Errorf("snapshot: %w: there is a %s", ErrExists, req.Link))
	}
	return nil
}

// unhindered refuses what a leftover, which could not be removed because of left, stands in the way
// of.
func (s *Snapshot) unhindered(left error) error {
	list, err := List(s.o)
	if left == nil || err != nil {
		return left
	}
	for _, o := range list {
		ended, err := o.Ended()
		if err != nil || o.Up && (o.Incremental || !ended) {
			continue
		}
		for _, v := range s.Volumes {
			if slices.ContainsFunc(o.Volumes, func(w *Volume) bool { return w.Name == v.Name }) {
				return left
			}
		}
	}
	return nil
}

// hold keeps LVM from changing the groups of the logical volumes of a request while the snapshot
// lives, which only a process can do: such a snapshot is transient. All are found first: from
// then on lvm2's own commands may have to wait for us.
func (s *Snapshot) holdGroups(ctx context.Context, ctl *dm.Control, devices []Device) error {
	var groups []string
	for _, d := range devices {
		info, err := ctl.Resolve(d.Path)
		if err != nil || !strings.HasPrefix(info.UUID, "LVM-") {
			continue // origin tells
		}
		if !s.Transient {
			return fmt.Errorf("snapshot: %s: %w", d.Path, ErrLVM)
		}
		lv, err := lvm.Find(ctx, info.Path())
		if err != nil {
			return err
		}
		groups = append(groups, lv.VG)
	}
	slices.Sort(groups)
	for _, vg := range slices.Compact(groups) {
		release, err := lvm.Hold(ctx, vg)
		if err != nil {
			return err
		}
		s.groups = append(s.groups, release)
	}
	return nil
}

// letGo lets LVM change the groups again.
func (s *Snapshot) letGo() error {
	var errs []error
	for _, release := range s.groups {
		errs = append(errs, release())
	}
	s.groups = nil
	return errors.Join(errs...)
}

// free refuses names of ours that something has already.
func (s *Snapshot) free(ctl *dm.Control, v *Volume) error {
	for _, name := range []string{s.image(v), s.copied(v), s.cow(v), v.real(), v.under()} {
		info, err := ctl.Info(name)
		if errors.Is(err, dm.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if (name == v.real() || name == v.under()) && info.UUID == uuid(name) {
			continue // of another snapshot of the volume, or of one that ended in part
		}
		return fmt.Errorf("%w: there is a device %s", ErrExists, info.Path())
	}
	if v.Store.Kind == Block || v.Store.Kind == Zram || v.Store.replaces {
		return nil
	}
	if _, err := os.Lstat(v.Store.Path); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, fmt.Errorf("%w: there is a file %s", ErrStore, v.Store.Path))
	}
	return nil
}

// name gives the snapshot a name that is free.
func (s *Snapshot) name(list []*Snapshot, all []dm.Entry) error {
	taken := func(name string) bool {
		return slices.ContainsFunc(list, func(o *Snapshot) bool { return o.Name == name }) ||
			// An image that was taken from its users has its UUID until the last of them goes.
			slices.ContainsFunc(all, func(e dm.Entry) bool {
				return strings.HasPrefix(e.UUID, uuid("")) && strings.HasSuffix(e.UUID, "+"+name)
			})
	}
	if s.Name == "" {
		for n := 1; ; n++ {
			if s.Name = fmt.Sprintf("snap%d", n); !taken(s.Name) {
				return nil
			}
		}
	}
	switch {
	case !validName.MatchString(s.Name), s.Name == "real":
		return fmt.Errorf("snapshot: %q is no name for one: letters, digits, and _.- inside, at most 32", s.Name)
	case taken(s.Name):
		return fmt.Errorf("snapshot: %s: %w", s.Name, ErrExists)
	}
	return nil
}

// create makes everything; after an error some of it is there.
func (s *Snapshot) create(ctx context.Context, ctl *dm.Control, req Request) error {
	if s.ofLVM() {
		return s.makeLVM(ctx, ctl, req.MaxFreeze)
	}
	plan := dmhold.Plan{Limit: req.MaxFreeze}
	for _, v := range s.Volumes {
		d, err := s.prepare(ctl, v)
		if err != nil {
			return fmt.Errorf("%s: %w", v.Name, err)
		}
		plan.Devices = append(plan.Devices, d)
		plan.Start = append(plan.Start, s.copied(v))
	}
	// What stores consist of is known now: a crash must find it.
	if err := s.write(); err != nil {
		return err
	}
	if err := s.flush(ctx); err != nil {
		return err
	}
	frozen, err := dmhold.Hold(ctx, plan, req.Instant)
	s.Frozen += frozen
	if err != nil {
		return err
	}
	for _, v := range s.Volumes {
		if err := s.show(ctl, v); err != nil {
			return fmt.Errorf("%s: %w", v.Name, err)
		}
	}
	return s.link()
}

// prepare makes the devices of a volume, and returns what is to happen to it at the instant: when
// there is no snapshot of it yet, it gets another table. The volume itself goes on as it was.
func (s *Snapshot) prepare(ctl *dm.Control, v *Volume) (d dmhold.Device, err error) {
	d = dmhold.Device{Name: v.Name, Dev: v.Dev}
	had, err := v.snapshotted(ctl)
	if err != nil {
		return d, err
	}
	table, _, err := ctl.Table(v.Name)
	if err != nil {
		return d, err
	}
	if !had {
		if err := add(ctl, v.real(), v.below(table), dm.LoadOptions{}); err != nil {
			return d, fmt.Errorf("its table cannot be loaded a second time: %w", err)
		}
	}
	if err := s.prepareStore(ctl, v); err != nil || had {
		return d, err
	}
	d.Swap = true
	if words, ok := eraTable(table); ok {
		d.Table, err = v.insert(ctl, words)
		return d, err
	}
	_, err = ctl.Load(v.Name, v.table("snapshot-origin", "/dev/mapper/"+v.real()), dm.LoadOptions{})
	return d, err
}

// prepareStore makes the store of a volume, and loads the snapshot.
func (s *Snapshot) prepareStore(ctl *dm.Control, v *Volume) error {
	store, loops, err := s.makeStore(v)
	if err != nil {
		return err
	}
	err = add(ctl, s.cow(v), store, dm.LoadOptions{})
	if loops != nil {
		err = errors.Join(err, loops.Close()) // the device above holds it from here on
	}
	if err != nil {
		return err
	}
	if s.Persistent { // what it holds by chance would be taken for a store
		if err = s.wipe(ctl, v); err != nil {
			return err
		}
	}
	if _, err = ctl.Create(s.copied(v), uuid(s.copied(v))); err != nil {
		return err
	}
	if _, err = ctl.Load(s.copied(v), s.table(v, "snapshot"), dm.LoadOptions{}); err != nil {
		return err
	}
	if s.Persistent { // the kernel has made its header
		err = s.mark(v)
	}
	return err
}

// table is one of all of the volume.
func (v *Volume) table(kind, params string) []dm.Target {
	return []dm.Target{{Len: uint64(v.Size / dm.SectorSize), Type: kind, Params: params}}
}

// table is that of the targets "snapshot" and "snapshot-merge".
func (s *Snapshot) table(v *Volume, kind string) []dm.Target {
	format := "N"
	if s.Persistent {
		format = "P"
	}
	return v.table(kind, fmt.Sprintf("/dev/mapper/%s /dev/mapper/%s %s %d", v.real(), s.cow(v), format, s.Chunk/dm.SectorSize))
}

// add makes a device that nobody but us is to use.
func add(ctl *dm.Control, name string, table []dm.Target, o dm.LoadOptions) error {
	_, err := ctl.Create(name, uuid(name))
	if err == nil {
		_, err = ctl.Load(name, table, o)
	}
	if err == nil {
		_, err = ctl.ResumeHidden(name)
	}
	return err
}

// flush writes out what users of the volumes hold in memory, so that the freeze is short.
func (s *Snapshot) flush(ctx context.Context) error {
	sources, release, err := s.openAll((*Volume).open)
	if err != nil {
		return err
	}
	defer release()
	return view.Freeze(view.Options{Sources: sources}).Flush(ctx)
}

// open opens a volume for reading.
func (v *Volume) open() (*block.Device, error) { return block.Open(v.path(), block.Options{}) }

// openAll opens all volumes.
func (s *Snapshot) openAll(open func(*Volume) (*block.Device, error)) (all []*block.Device, release func(), err error) {
	release = func() {
		for _, d := range all {
			d.Close()
		}
	}
	for _, v := range s.Volumes {
		d, err := open(v)
		if err != nil {
			release()
			return nil, nil, err
		}
		all = append(all, d)
	}
	return all, release, nil
}

// show makes the image of a volume: the snapshot, with zeros where the store's own file lies.
func (s *Snapshot) show(ctl *dm.Control, v *Volume) error {
	return add(ctl, s.image(v), s.shows(v), dm.LoadOptions{ReadOnly: !s.Writable})
}

// shows is the table of the image of a volume.
func (s *Snapshot) shows(v *Volume) (table []dm.Target) {
	at := int64(0)
	part := func(kind string, end int64) {
		if end <= at {
			return
		}
		t := dm.Target{Start: uint64(at / dm.SectorSize), Len: uint64((end - at) / dm.SectorSize), Type: kind}
		if kind == "linear" {
			t.Params = fmt.Sprintf("/dev/mapper/%s %d", s.copied(v), at/dm.SectorSize)
		}
		table, at = append(table, t), end
	}
	for _, e := range v.Store.Extents {
		part("linear", e.Off)
		part("zero", e.End())
	}
	part("linear", v.Size)
	return table
}

// usage asks the kernel how full the store of a volume is.
func (s *Snapshot) usage(ctl *dm.Control, v *Volume) (dmsnap.Usage, error) {
	found, err := dmsnap.Get(ctl, s.copied(v))
	if err != nil {
		return dmsnap.Usage{}, err
	}
	return found.Usage(ctl)
}
