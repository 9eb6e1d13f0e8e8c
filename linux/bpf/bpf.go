// Package bpf installs and operates the eBPF programs that see every change of
// a block device. It owns the objects pinned in bpffs (programs, links, maps)
// and the bitmaps; it decides nothing: which disks to track, when an epoch ends
// and what a mark is worth is the business of package track/bpf.
//
// # Two marks for one write
//
// A tracked disk has one active bitmap, one bit a block. Each change sets its
// bits twice in the bitmap that is active at that moment:
//
//   - before the driver acts on it. A reader who copies the block after that may
//     see the new content, so the block must be in the epoch in which the content
//     could first change;
//   - after the medium has changed. A block that was copied while its write was
//     in flight is thus in the next epoch again.
//
// Disks with a request queue are watched at block_rq_issue (the first thing in
// blk_mq_start_request, which each driver calls before it acts on a request) and
// block_rq_complete (before the request moves on). That is one event for many
// merged bios; it also sees bios that never pass block_bio_queue because a driver
// above (md raid0) sends its own bio on. A queue is never run in an interrupt and, before
// Linux 7.0, tracepoints are not preempted, so an issue is not skipped for interrupting
// another. Disks without a request queue (dm, md, zram) are watched at
// block_bio_queue and block_bio_complete; a completed bio no longer knows its
// range, so it is remembered by the bio's address in between. A bio that comes from a
// device above as it is passes no block_bio_queue; block_bio_remap tells what dm and
// md make of it, but its end is a doubt. Where such a disk sends the bio itself on to
// one with a queue (NVMe multipath), its end is seen in block_rq_complete.
//
// # Ending an epoch
//
// [Facility.Swap] puts a fresh bitmap in the disk's slot. Updating an element
// of a map of maps returns only after synchronize_rcu (maybe_wait_bpf_programs
// in kernel/bpf/syscall.c, in every kernel since 5.0), and a tracing program
// runs from beginning to end in one RCU read-side section (__bpf_trace_run in
// kernel/trace/bpf_trace.c; none of ours is sleepable). So when Swap returns, no
// CPU can still be writing to the old bitmap, and what happened before Swap was
// called is in it.
//
// # Completions that need no mark
//
// A request that was started after Swap had returned was issued later still, and
// its issue is marked in the bitmap that is active now: marking it again at completion
// would change nothing, and is left out. The kernel stamps requests with the time of
// their start, which is before their issue (request.start_time_ns). Swap first forgets
// since when the bitmap is active, so that all completions are marked while it works,
// and at the end has a program write the time, by the clock of the stamps. A completion
// that was left out because of the time before was over when Swap returned; who copies
// later sees what it wrote.
//
// # Merges of snapshots
//
// While dm-snapshot merges a snapshot into its origin (snapshot-merge), the origin changes
// without a bio of its own, and afterwards it may have the table that it had before. So
// swap_table looks at each table that a tracked disk of device-mapper gets, at the function
// dm_swap_table of drivers/md/dm.c; see [Facility.WatchSwaps].
//
// # What it cannot do
//
// The kernel skips a program that would interrupt itself on the same CPU; the
// skips are counted, see [Facility.Misses]. From Linux 7.0 on it may also preempt a
// program (include/linux/tracepoint.h), and then skips it for other tasks on that CPU:
// there the programs that mark first are loaded five times, and a change goes unmarked
// only if all five were skipped for it. Everything that the programs notice
// but cannot express as blocks is left as flags in the bitmap's header, see
// [Lost]. Kernels without BTF, tp_btf programs or memory-mapped maps, which is those
// before 5.10, are refused with [ErrNotSupported].
//
// # Older kernels
//
// There are two objects, of one source. Where the kernel lacks bpf_loop (Linux 5.17), atomic
// OR (5.12) or fields that the first one reads, see [Plain], the second takes its place: a
// block has a byte, not a bit, because a byte can be stored at once without regard to its
// neighbours, and loops are bounded. What is marked when is the same. A bitmap for the same
// disk takes eight times the memory, so that [Facility.MaxBlocks] is an eighth.
//
// A Facility and a Bitmap may be used by several goroutines; the header of a
// bitmap is written under the lock of whoever flips (package track/bpf).
package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"

	"tidemark/linux/sysfs"
)

var (
	// ErrNotSupported says that this kernel lacks something the tracker needs;
	// the message names it and the kernel that brought it.
	ErrNotSupported = errors.New("not supported by this kernel")
	// ErrNotInstalled says that nothing is pinned at the given place.
	ErrNotInstalled = errors.New("tracking programs are not installed")
	// ErrBroken says that some of the pinned objects are gone or are not ours.
	ErrBroken = errors.New("tracking programs are damaged")
)

// The programs and the maps, by their names in track.bpf.c. Where a version of
// tidemark has to do something with them that earlier ones do not, one of them gets
// another name, so that to each the other's installation is damaged.
const (
	progQueue   = "queue_bio"
	progOwnMap  = "remap_bio"
	progBioDone = "complete_bio"
	progIssue   = "issue_request"
	progReqDone = "complete_request"
	progRemap   = "complete_remapped"
	progSwap    = "swap_table"
	progBegan   = "began"
	beganPlain  = "began_plain"  // in the place of progBegan, where there are bytes for bits
	beganCopies = "began_copies" // the same, where the kernel preempts programs: those of copied have copies
	mapDisks    = "disks"
	mapFlights  = "flights"
	mapActive   = "active"
	mapSince    = "since"
	mapNotes    = "notes"      // with copies; not pinned, only the programs use it
	mapCaught   = "caught"     // with copies
	caughtBio   = "caught_bio" // the same, of bioProgs
	pinnedLink  = "link_"      // a dot is not allowed in bpffs
	stagingEnd  = "-new"
	dirMode     = 0o700
)

// reqProgs are always attached; bioProgs are loaded when the first bio-based disk is tracked, and
// attached while one is; progSwap, which is in none of the lists, from the first disk of
// device-mapper on, where the kernel can. The last of all programs is called, by Swap.
func reqProgs(began string) []string { return withCopies(began, progIssue, progReqDone) }

func bioProgs(began string) []string {
	return withCopies(began, progQueue, progOwnMap, progBioDone, progRemap)
}

func tracing(began string) []string { return append(reqProgs(began), bioProgs(began)...) }

func mapNames(began string) []string {
	names := []string{mapDisks, mapFlights, mapActive, mapSince}
	if began == beganCopies {
		names = append(names, mapCaught)
	}
	return names
}

// variant returns which name the last of the programs is pinned by, on this kernel.
func variant(types *btf.Cache) (string, error) {
	if plain(types) != nil {
		return beganPlain, nil
	}
	before, err := sysfs.KernelBefore(7, 0)
	if err != nil || before {
		return progBegan, err
	}
	return beganCopies, nil
}

// Facility is the set of programs and maps of this machine.
type Facility struct {
	dir   string
	began string // the name that the last program is pinned by
	plain bool   // bitmaps are bytes
	maps  map[string]*ebpf.Map
	progs map[string]*ebpf.Program
	ids   map[string]uint32 // of what was pinned when we opened it
	types *btf.Cache        // the kernel's
}

// Load opens what is pinned in dir. The error wraps ErrNotInstalled when there
// is nothing, ErrBroken when something is missing.
func Load(dir string) (*Facility, error) { return loadFrom(dir, btf.NewCache()) }

func loadFrom(dir string, types *btf.Cache) (*Facility, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("bpf: %s: %w", dir, ErrNotInstalled)
	}
	f := &Facility{dir: dir, maps: map[string]*ebpf.Map{}, progs: map[string]*ebpf.Program{}, ids: map[string]uint32{}, types: types}
	if err := f.load(); err != nil {
		f.Close()
		return nil, fmt.Errorf("bpf: %s: %w", dir, err)
	}
	return f, nil
}

// gone says ErrBroken of a pin that is missing. Other failures (of memory, of
// permission) say nothing about what is installed.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrBroken, err)
	}
	return err
}

func (f *Facility) load() error {
	f.began = progBegan
	for _, name := range []string{beganPlain, beganCopies} {
		if _, err := os.Stat(filepath.Join(f.dir, name)); err == nil {
			f.began = name
		}
	}
	f.plain = f.began == beganPlain
	for _, name := range mapNames(f.began) {
		if err := f.loadMap(name); err != nil {
			return err
		}
	}
	for _, name := range append(reqProgs(f.began), f.began) {
		if err := f.loadProgram(name); err != nil {
			return err
		}
	}
	for _, name := range append(bioProgs(f.began), progSwap) {
		if err := ifThere(f.loadProgram(name)); err != nil {
			return err
		}
	}
	if err := ifThere(f.loadMap(caughtBio)); err != nil {
		return err
	}
	return f.checkLinks(reqProgs(f.began))
}

// ifThere forgives the error of loadMap or loadProgram where nothing is pinned.
func ifThere(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// loadMap opens a pinned map, in the place of what was open by that name.
func (f *Facility) loadMap(name string) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(f.dir, name), nil)
	if err != nil {
		return gone(err)
	}
	err = f.maps[name].Close()
	f.maps[name] = m
	if err == nil {
		f.ids[name], err = mapID(m)
	}
	return err
}

// loadProgram does the same with a program.
func (f *Facility) loadProgram(name string) error {
	p, err := ebpf.LoadPinnedProgram(filepath.Join(f.dir, name), nil)
	if err != nil {
		return gone(err)
	}
	err = f.progs[name].Close()
	f.progs[name] = p
	if err != nil {
		return err
	}
	info, err := p.Info()
	if err != nil {
		return err
	}
	id, _ := info.ID()
	f.ids[name] = uint32(id)
	return nil
}

// Install loads the programs, attaches them and pins everything in dir, which
// must not exist; its parents are created. A crash leaves either all or nothing
// at dir, an error nothing.
func Install(dir string) (*Facility, error) {
	types := btf.NewCache()
	began, err := variant(types)
	if err != nil {
		return nil, fmt.Errorf("bpf: install: %w", err)
	}
	for try := 1; ; try++ {
		f, err := install(dir, began, types)
		if err != nil || began != beganCopies || try == attachTries {
			return f, err
		}
		m, err := f.Misses(false)
		if err == nil && m.Queue == 0 {
			return f, nil
		}
		if err := errors.Join(err, f.Close(), Remove(dir)); err != nil {
			return nil, err
		}
	}
}

func install(dir, began string, types *btf.Cache) (*Facility, error) {
	staging := dir + stagingEnd
	if err := os.RemoveAll(staging); err != nil {
		return nil, fmt.Errorf("bpf: remove a half-made installation: %w", err)
	}
	if err := os.MkdirAll(staging, dirMode); err != nil {
		return nil, fmt.Errorf("bpf: install: %w", err)
	}
	if err := pinAll(staging, began, types); err != nil {
		return nil, errors.Join(err, os.RemoveAll(staging))
	}
	if err := os.Rename(staging, dir); err != nil {
		return nil, errors.Join(fmt.Errorf("bpf: install: %w", err), os.RemoveAll(staging))
	}
	f, err := loadFrom(dir, types)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return f, nil
}

func pinAll(dir, began string, types *btf.Cache) error {
	names := append(reqProgs(began), began)
	coll, err := newCollection(began, names, ebpf.CollectionOptions{Cache: types})
	if err != nil {
		return err
	}
	defer coll.Close()
	for _, name := range mapNames(began) {
		if err := coll.Maps[name].Pin(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("bpf: pin map %s: %w", name, err)
		}
	}
	for _, name := range names {
		if err := coll.Programs[name].Pin(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("bpf: pin program %s: %w", name, err)
		}
	}
	for _, name := range reqProgs(began) {
		if err := attach(dir, name, coll.Programs[name]); err != nil {
			return err
		}
	}
	return nil
}

// newCollection makes the programs of these names, of a variant, and the maps that opts has no others
// in the place of.
func newCollection(began string, names []string, opts ebpf.CollectionOptions) (*ebpf.Collection, error) {
	spec, err := specOf(began == beganPlain, opts.Cache)
	if err != nil {
		return nil, err
	}
	if began == beganCopies {
		spec.Programs[began] = spec.Programs[progBegan]
	} else {
		delete(spec.Maps, mapNotes)
		delete(spec.Maps, mapCaught)
	}
	spec.Programs = only(spec.Programs, names)
	if err := countNoMemory(); err != nil {
		return nil, err
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, opts)
	if err != nil {
		return nil, explain(err)
	}
	return coll, nil
}

// specOf returns one of the two objects; that for older kernels fitted to this one.
func specOf(plain bool, types *btf.Cache) (*ebpf.CollectionSpec, error) {
	if !plain {
		spec, err := loadTrack()
		if err != nil {
			return nil, fmt.Errorf("bpf: read the programs: %w", err)
		}
		return spec, nil
	}
	spec, err := loadPlain()
	if err != nil {
		return nil, fmt.Errorf("bpf: read the programs: %w", err)
	}
	for name, tracepoint := range map[string]string{"before_bio": "block_bio_queue", "before_request": "block_rq_issue"} {
		n, err := argumentsBefore(tracepoint, types)
		if err == nil {
			err = spec.Variables[name].Set(n)
		}
		if err != nil {
			return nil, fmt.Errorf("bpf: %w: tracepoint %s: %w", ErrNotSupported, tracepoint, err)
		}
	}
	return spec, nil
}

// countNoMemory raises RLIMIT_MEMLOCK before Linux 5.11, which counts maps against it.
func countNoMemory() error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("bpf: maps count as locked memory here (RLIMIT_MEMLOCK), and the limit cannot be raised: %w", err)
	}
	return nil
}

// attach attaches a program and pins the link. It is no error when that has been
// done.
func attach(dir, name string, p *ebpf.Program) error {
	path := filepath.Join(dir, pinnedLink+name)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	l, err := link.AttachTracing(link.TracingOptions{Program: p})
	if err != nil {
		return explain(fmt.Errorf("attach %s: %w", name, err))
	}
	defer l.Close() // the pin holds it
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("bpf: pin link %s: %w", name, err)
	}
	return nil
}

// detach undoes attach. It is no error when there is nothing to undo.
func detach(dir, name string) error {
	if err := os.Remove(filepath.Join(dir, pinnedLink+name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("bpf: detach: %w", err)
	}
	return nil
}

// Remove detaches the programs and removes everything pinned in dir, bitmaps
// included. It is no error when there is nothing.
func Remove(dir string) error {
	if err := errors.Join(os.RemoveAll(dir+stagingEnd), os.RemoveAll(dir)); err != nil {
		return fmt.Errorf("bpf: remove: %w", err)
	}
	return nil
}

// Dir returns the directory of the pins.
func (f *Facility) Dir() string { return f.dir }

// Check reports whether the programs are still attached and the pinned maps are
// still those that were opened; the error wraps ErrBroken when not. Bio says
// whether those for bio-based disks have to be, swaps whether that of [Facility.WatchSwaps].
func (f *Facility) Check(bio, swaps bool) error {
	names := reqProgs(f.began)
	if bio {
		names = tracing(f.began)
	}
	if swaps {
		names = append(names, progSwap)
	}
	if err := f.checkLinks(names); err != nil {
		return fmt.Errorf("bpf: %s: %w", f.dir, err)
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(f.dir, mapActive), nil)
	if err != nil {
		return fmt.Errorf("bpf: %s: %w", f.dir, gone(err))
	}
	defer m.Close()
	if id, err := mapID(m); err != nil || id != f.ids[mapActive] {
		return fmt.Errorf("bpf: %s: %w: it was installed anew", f.dir, ErrBroken)
	}
	return nil
}

func (f *Facility) checkLinks(names []string) error {
	for _, name := range names {
		l, err := link.LoadPinnedLink(filepath.Join(f.dir, pinnedLink+name), nil)
		if err != nil {
			return fmt.Errorf("program %s is not attached: %w", name, gone(err))
		}
		info, err := l.Info()
		l.Close()
		if err != nil {
			return fmt.Errorf("link of %s: %w", name, err)
		}
		if uint32(info.Program) != f.ids[name] {
			return fmt.Errorf("%w: the link of %s belongs to another program", ErrBroken, name)
		}
	}
	return nil
}

// Programs returns the loaded programs by name, for their run-time statistics.
// The caller must not close them.
func (f *Facility) Programs() map[string]*ebpf.Program { return f.progs }

// Close lets go of the descriptors; what is pinned stays.
func (f *Facility) Close() error {
	var errs []error
	for _, m := range f.maps {
		errs = append(errs, m.Close())
	}
	for _, p := range f.progs {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

func mapID(m *ebpf.Map) (uint32, error) {
	info, err := m.Info()
	if err != nil {
		return 0, err
	}
	id, ok := info.ID()
	if !ok {
		return 0, fmt.Errorf("map has no id: %w (Linux 4.13)", ErrNotSupported)
	}
	return uint32(id), nil
}
