package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// enotsupp is what the kernel says of a trampoline that its processor has none of
// (ENOTSUPP, include/linux/errno.h).
const enotsupp = unix.Errno(524)

// WatchSwaps has tables of device-mapper looked at when they are put in place, for
// LostMerged. It returns whether the kernel can: it needs the types of the module dm_mod
// (CONFIG_DEBUG_INFO_BTF_MODULES), which must be loaded, and programs at functions, which
// ARM has since Linux 6.4. The machine's lock must be held.
func (f *Facility) WatchSwaps() (bool, error) {
	err := f.pinSwap()
	if err == nil {
		err = attach(f.dir, progSwap, f.progs[progSwap])
	}
	if errors.Is(err, btf.ErrNotFound) || errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, enotsupp) {
		return false, f.dropSwap()
	}
	if err == nil {
		err = f.checkLinks([]string{progSwap})
	}
	return err == nil, err
}

// pinSwap loads the program and pins it, unless that has been done.
func (f *Facility) pinSwap() error {
	if f.progs[progSwap] != nil {
		return nil
	}
	spec, err := specOf(f.plain)
	if err != nil {
		return err
	}
	spec.Programs = map[string]*ebpf.ProgramSpec{progSwap: spec.Programs[progSwap]}
	for name := range spec.Maps {
		if name != mapActive && name != mapDisks {
			delete(spec.Maps, name)
		}
	}
	if err := countNoMemory(); err != nil {
		return err
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		MapReplacements: map[string]*ebpf.Map{mapActive: f.maps[mapActive], mapDisks: f.maps[mapDisks]},
	})
	if err != nil {
		return fmt.Errorf("bpf: load %s: %w", progSwap, err)
	}
	defer coll.Close()
	if err := coll.Programs[progSwap].Pin(filepath.Join(f.dir, progSwap)); err != nil {
		return fmt.Errorf("bpf: pin program %s: %w", progSwap, err)
	}
	return f.loadSwap()
}

// dropSwap undoes WatchSwaps. Else the module could not be removed from the kernel.
func (f *Facility) dropSwap() error {
	err := errors.Join(detach(f.dir, progSwap), Unpin(filepath.Join(f.dir, progSwap)))
	if p := f.progs[progSwap]; p != nil {
		delete(f.progs, progSwap)
		err = errors.Join(err, p.Close())
	}
	return err
}

// loadSwap opens the program, if it is there.
func (f *Facility) loadSwap() error {
	err := f.loadProgram(progSwap)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
