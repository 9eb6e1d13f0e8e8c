package bpf

import (
	"errors"
	"fmt"

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
	return []Feature{
		{"BTF of the kernel (CONFIG_DEBUG_INFO_BTF)", "Linux 5.4", probeBTF()},
		{"tracing programs on BTF tracepoints (tp_btf)", "Linux 5.5", probeTracing()},
		{"bpf_loop", "Linux 5.17", probeLoop()},
		{"memory-mapped arrays as inner maps", "Linux 5.10", probeInnerMap()},
		{"atomic instructions", "Linux 5.12", probeAtomics()},
		{"the block layer's tracepoints and structures", "Linux 5.16", probeBlock()},
	}
}

// Try does what tracking does: it loads the programs, attaches them, for a moment, and makes
// a bitmap of the given number of blocks. Nothing of it stays. The error wraps ErrNotSupported
// where the kernel lacks something.
func Try(blocks uint64) (err error) {
	spec, err := loadTrack()
	if err != nil {
		return fmt.Errorf("bpf: read the programs: %w", err)
	}
	delete(spec.Programs, progSwap)
	coll, err := newCollection(spec)
	if err != nil {
		return err
	}
	defer coll.Close()
	for _, name := range tracing() {
		l, err := link.AttachTracing(link.TracingOptions{Program: coll.Programs[name]})
		if err != nil {
			return explain(fmt.Errorf("attach %s: %w", name, err))
		}
		defer l.Close()
	}
	b, err := NewBitmap(blocks)
	if err != nil {
		return err
	}
	return b.Close()
}

func probeBTF() error {
	_, err := btf.LoadKernelSpec()
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
func probeLoop() error {
	spec, err := btf.LoadKernelSpec()
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

// probeBlock looks for what the programs read, by name.
func probeBlock() error {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return err
	}
	for _, name := range []string{"block_bio_queue", "block_bio_complete", "block_rq_issue", "block_rq_complete"} {
		var t *btf.Typedef
		if err := spec.TypeByName("btf_trace_"+name, &t); err != nil {
			return fmt.Errorf("tracepoint %s: %w", name, err)
		}
	}
	for name, field := range map[string]string{"bio": "bi_bdev", "gendisk": "diskseq", "block_device": "bd_nr_sectors", "request_queue": "disk"} {
		var t *btf.Struct
		if err := spec.TypeByName(name, &t); err != nil {
			return fmt.Errorf("struct %s: %w", name, err)
		}
		if !hasMember(t, field) {
			return fmt.Errorf("struct %s has no %s", name, field)
		}
	}
	return nil
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
