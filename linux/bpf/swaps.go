package bpf

import (
	"errors"
	"fmt"
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
		return false, f.drop(progSwap)
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
	coll, err := f.more([]string{progSwap})
	if err != nil {
		return fmt.Errorf("load %s: %w", progSwap, err)
	}
	defer coll.Close()
	return f.keep(coll, progSwap)
}

// drop detaches a program and lets go of it. It is no error when it is not there.
func (f *Facility) drop(name string) error {
	err := errors.Join(detach(f.dir, name), Unpin(filepath.Join(f.dir, name)))
	if p := f.progs[name]; p != nil {
		delete(f.progs, name)
		err = errors.Join(err, p.Close())
	}
	return err
}
