package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
)

// What the names of the copies of a program end with, in the order in which they are attached.
const (
	copyFirst = "_first"
	copyAgain = "_again"
	copyLast  = "_last"
)

// attachTries is how often copies are attached anew, because the first was skipped before the
// others were there.
const attachTries = 5

// copied are the programs that have copies where the kernel preempts programs: they mark before
// the driver acts. Their order is that of enum kind in track.bpf.c.
func copied() []string { return []string{progQueue, progOwnMap, progIssue} }

// withCopies puts the copies of programs in their places, where there are some.
func withCopies(began string, names ...string) (all []string) {
	for _, name := range names {
		if began == beganCopies && slices.Contains(copied(), name) {
			all = append(all, name+copyFirst, name+copyAgain, name+copyLast)
		} else {
			all = append(all, name)
		}
	}
	return all
}

// attachCopies attaches the programs for bio-based disks, unless they are. They are loaded anew
// for that: whatever was skipped while not all of them were attached, the last time or this time,
// must not be in the counts. Who is killed in between leaves an installation that is damaged, or
// programs that are not attached.
func (f *Facility) attachCopies() error {
	names := bioProgs(f.began)
	err := f.checkLinks(names)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for try := 1; ; try++ {
		if err := errors.Join(f.detachAll(names), f.renew(names)); err != nil {
			return err
		}
		if err := f.attachAll(names); err != nil {
			return err
		}
		m, err := f.Misses(true)
		if err != nil || m.Queue == 0 || try == attachTries {
			return err
		}
	}
}

// renew puts new programs in the place of the pinned ones, with notes and a count of what they
// catch of their own: the kernel takes its time to detach the old ones.
func (f *Facility) renew(names []string) error {
	spec, err := specOf(f.plain)
	if err != nil {
		return err
	}
	spec.Programs = only(spec.Programs, names)
	delete(spec.Maps, mapSince)
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		MapReplacements: map[string]*ebpf.Map{mapDisks: f.maps[mapDisks], mapFlights: f.maps[mapFlights], mapActive: f.maps[mapActive]},
	})
	if err != nil {
		return explain(err)
	}
	defer coll.Close()
	pin := func(name string, to func(string) error) error {
		path := filepath.Join(f.dir, name)
		if err := errors.Join(Unpin(path), to(path)); err != nil {
			return fmt.Errorf("bpf: pin %s anew: %w", name, err)
		}
		return nil
	}
	if err := errors.Join(pin(caughtBio, coll.Maps[mapCaught].Pin), f.loadMap(caughtBio)); err != nil {
		return err
	}
	for _, name := range names {
		if err := errors.Join(pin(name, coll.Programs[name].Pin), f.loadProgram(name)); err != nil {
			return err
		}
	}
	return nil
}

// only returns the programs of these names.
func only(all map[string]*ebpf.ProgramSpec, names []string) map[string]*ebpf.ProgramSpec {
	some := map[string]*ebpf.ProgramSpec{}
	for _, name := range names {
		some[name] = all[name]
	}
	return some
}
