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
	copyFirst  = "_first"
	copyAgain  = "_again"
	copyThird  = "_third"
	copyFourth = "_fourth"
	copyLast   = "_last"
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
			all = append(all, name+copyFirst, name+copyAgain, name+copyThird, name+copyFourth, name+copyLast)
		} else {
			all = append(all, name)
		}
	}
	return all
}

// attachBio loads and attaches the programs for bio-based disks, unless they are attached. They
// are loaded anew for that: whatever was skipped while not all copies of them were attached, the last
// time or this time, must not be in the counts. Who is killed in between leaves programs that are not
// attached.
func (f *Facility) attachBio() error {
	names := bioProgs(f.began)
	err := f.checkLinks(names)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for try := 1; ; try++ {
		if err := errors.Join(f.dropBio(), f.loadBio(names)); err != nil {
			return err
		}
		if err := f.attachAll(names); err != nil || f.began != beganCopies {
			return err
		}
		m, err := f.Misses(true)
		if err != nil || m.Queue == 0 || try == attachTries {
			return err
		}
	}
}

// more makes more programs, with the maps of those that are there, but for notes and counts.
func (f *Facility) more(names []string) (*ebpf.Collection, error) {
	maps := map[string]*ebpf.Map{}
	for _, name := range mapNames(progBegan) {
		maps[name] = f.maps[name]
	}
	return newCollection(f.began, names, ebpf.CollectionOptions{Cache: f.types, MapReplacements: maps})
}

// loadBio loads and pins the programs for bio-based disks, with notes and a count of what they catch
// of their own: the kernel takes its time to detach what was there before.
func (f *Facility) loadBio(names []string) error {
	coll, err := f.more(names)
	if err != nil {
		return err
	}
	defer coll.Close()
	if caught := coll.Maps[mapCaught]; caught != nil {
		if err := caught.Pin(filepath.Join(f.dir, caughtBio)); err != nil {
			return fmt.Errorf("bpf: pin %s: %w", caughtBio, err)
		}
		if err := f.loadMap(caughtBio); err != nil {
			return err
		}
	}
	return f.keep(coll, names...)
}

// keep pins programs that more has made, and opens them.
func (f *Facility) keep(coll *ebpf.Collection, names ...string) error {
	for _, name := range names {
		if err := coll.Programs[name].Pin(filepath.Join(f.dir, name)); err != nil {
			return fmt.Errorf("bpf: pin program %s: %w", name, err)
		}
		if err := f.loadProgram(name); err != nil {
			return err
		}
	}
	return nil
}

// dropBio undoes attachBio.
func (f *Facility) dropBio() error {
	err := Unpin(filepath.Join(f.dir, caughtBio))
	for _, name := range bioProgs(f.began) {
		err = errors.Join(err, f.drop(name))
	}
	return err
}

// only returns the programs of these names.
func only(all map[string]*ebpf.ProgramSpec, names []string) map[string]*ebpf.ProgramSpec {
	some := map[string]*ebpf.ProgramSpec{}
	for _, name := range names {
		some[name] = all[name]
	}
	return some
}
