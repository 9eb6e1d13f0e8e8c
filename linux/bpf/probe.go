package bpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Feature is one thing the tracker needs from the kernel or the user.
type Feature struct {
	Name  string // what it is
	Since string // the kernel that brought it
	Err   error  // nil when it is there
}

// Probe tries everything the tracker needs, by itself. It changes nothing on the machine.
func Probe() []Feature {
	types := btf.NewCache()
	return []Feature{
		{"BTF of the kernel (CONFIG_DEBUG_INFO_BTF)", "Linux 5.4", probeBTF(types)},
		{"tracing programs on BTF tracepoints (tp_btf)", "Linux 5.5", probeTracing()},
		{"memory-mapped arrays as inner maps", "Linux 5.10", probeInnerMap()},
		{"the block layer's tracepoints and structures", "Linux 5.10", probeBlock(types, older())},
	}
}

// Plain says what this kernel lacks for bitmaps of bits, so that theirs are of bytes; nil is
// nothing. It presumes that nothing is missing of what Probe tries.
func Plain() error { return plain(btf.NewCache()) }

func plain(types *btf.Cache) error {
	for _, f := range []Feature{
		{"bpf_loop", "Linux 5.17", probeLoop(types)},
		{"atomic instructions", "Linux 5.12", probeAtomics()},
		{"the block layer's structures of now", "Linux 6.0", probeBlock(types, newer())},
	} {
		if f.Err != nil {
			return fmt.Errorf("%s (%s)", f.Name, f.Since)
		}
	}
	return nil
}

// Try does what tracking does: it loads the programs, attaches them, for a moment, and makes
// a bitmap of the given number of blocks. Nothing of it stays. The error wraps ErrNotSupported
// where the kernel lacks something.
func Try(blocks uint64) (err error) {
	types := btf.NewCache()
	began, err := variant(types)
	if err != nil {
		return err
	}
	coll, err := newCollection(began, append(tracing(began), began), ebpf.CollectionOptions{Cache: types})
	if err != nil {
		return err
	}
	defer coll.Close()
	for _, name := range tracing(began) {
		l, err := link.AttachTracing(link.TracingOptions{Program: coll.Programs[name]})
		if err != nil {
			return explain(fmt.Errorf("attach %s: %w", name, err))
		}
		defer l.Close()
	}
	b, err := newBitmap(blocks, began == beganPlain)
	if err != nil {
		return err
	}
	return b.Close()
}

func probeBTF(types *btf.Cache) error {
	_, err := types.Kernel()
	return err
}

func probeTracing() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.Tracing,
		AttachType:   ebpf.AttachTraceRawTp,
		AttachTo:     "block_bio_queue",
		License:      "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return err
	}
	return p.Close()
}

// probeLoop asks the kernel's own list of helpers.
func probeLoop(types *btf.Cache) error {
	spec, err := types.Kernel()
	if err != nil {
		return err
	}
	var ids *btf.Enum
	if err := spec.TypeByName("bpf_func_id", &ids); err != nil {
		return err
	}
	for _, v := range ids.Values {
		if v.Name == "BPF_FUNC_loop" {
			return nil
		}
	}
	return errors.New("no such helper")
}

func probeInnerMap() error {
	m, err := newMap(2)
	if err != nil {
		return err
	}
	return m.Close()
}

func probeAtomics() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:    ebpf.SocketFilter,
		License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreMem(asm.RFP, -8, asm.R1, asm.DWord),
			asm.FetchOr.Mem(asm.RFP, asm.R1, asm.DWord, -8),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
		},
	})
	if err != nil {
		return err
	}
	return p.Close()
}

// field is a field of one of the kernel's structures; with an empty name, the structure or the
// enumeration itself.
type field struct{ of, name string }

// newer are the fields that track.bpf.c reads without PLAIN. Of each line one has to be there.
func newer() [][]field {
	return [][]field{
		{{"bio", "bi_bdev"}},
		{{"gendisk", "diskseq"}},
		{{"block_device", "bd_nr_sectors"}},
		{{"request_queue", "disk"}},
		{{"req_op", ""}},
	}
}

// older are those that it reads with PLAIN.
func older() [][]field {
	return [][]field{
		{{"bio", "bi_bdev"}, {"bio", "bi_disk"}},
		{{"gendisk", "first_minor"}},
		{{"block_device", "bd_nr_sectors"}, {"hd_struct", "nr_sects"}, {"block_device", "bd_inode"}},
		{{"request_queue", "disk"}, {"request", "rq_disk"}},
		{{"req_op", ""}, {"req_opf", ""}},
	}
}

// probeBlock looks for what the programs read, by name.
func probeBlock(types *btf.Cache, want [][]field) error {
	spec, err := types.Kernel()
	if err != nil {
		return err
	}
	for _, name := range []string{"block_bio_queue", "block_bio_remap", "block_bio_complete", "block_rq_issue", "block_rq_complete"} {
		if _, err := parameters(spec, name); err != nil {
			return err
		}
	}
	for _, any := range want {
		if !slices.ContainsFunc(any, func(f field) bool { return has(spec, f) }) {
			return fmt.Errorf("no %s.%s", any[0].of, any[0].name)
		}
	}
	return nil
}

func has(spec *btf.Spec, f field) bool {
	all, err := spec.AnyTypesByName(f.of)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(all, func(t btf.Type) bool {
		s, ok := t.(*btf.Struct)
		return f.name == "" || ok && hasMember(s, f.name)
	})
}

// parameters returns what a tracepoint hands to a program.
func parameters(spec *btf.Spec, tracepoint string) ([]btf.FuncParam, error) {
	var t *btf.Typedef
	if err := spec.TypeByName("btf_trace_"+tracepoint, &t); err != nil {
		return nil, fmt.Errorf("tracepoint %s: %w", tracepoint, err)
	}
	if p, ok := t.Type.(*btf.Pointer); ok {
		if f, ok := p.Target.(*btf.FuncProto); ok && len(f.Params) > 1 {
			return f.Params[1:], nil // the first one is the tracepoint's own
		}
	}
	return nil, fmt.Errorf("tracepoint %s has other parameters than a function", tracepoint)
}

// argumentsBefore counts what a tracepoint hands over before the bio, or the request.
func argumentsBefore(tracepoint string, types *btf.Cache) (uint32, error) {
	spec, err := types.Kernel()
	if err != nil {
		return 0, err
	}
	all, err := parameters(spec, tracepoint)
	if err != nil {
		return 0, err
	}
	for i, a := range all[:min(2, len(all))] {
		if p, ok := a.Type.(*btf.Pointer); ok {
			if s, ok := p.Target.(*btf.Struct); ok && (s.Name == "bio" || s.Name == "request") {
				return uint32(i), nil
			}
		}
	}
	return 0, errors.New("it hands over no bio and no request")
}

func hasMember(t *btf.Struct, name string) bool {
	for _, m := range t.Members {
		if m.Name == name {
			return true
		}
	}
	return false
}

// explain turns the kernel's refusal of a program or map into words: a missing
// feature or permission is named, anything else is returned as it is.
func explain(err error) error {
	switch root := unix.Geteuid() == 0; {
	case !root && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)):
		return fmt.Errorf("bpf: %w (needs CAP_BPF and CAP_PERFMON, or root)", err)
	case root && errors.Is(err, unix.EPERM):
		return fmt.Errorf("bpf: %w (root may not here: a container, or a kernel that is locked down)", err)
	}
	for _, f := range Probe() {
		if f.Err != nil {
			return fmt.Errorf("bpf: %w: %s (%s): %w", ErrNotSupported, f.Name, f.Since, f.Err)
		}
	}
	return fmt.Errorf("bpf: %w", err)
}
