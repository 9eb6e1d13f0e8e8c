package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// Feature is one thing the tracker needs from the kernel or the user.
type Feature struct {
	Name  string // what it is
	Since string // the kernel that brought it
	Err   error  // nil when it is there
}

// Probe tries everything the tracker needs. It changes nothing on the machine.
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
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) && unix.Geteuid() != 0 {
		return fmt.Errorf("bpf: %w (needs CAP_BPF and CAP_PERFMON, or root)", err)
	}
	for _, f := range Probe() {
		if f.Err != nil {
			return fmt.Errorf("bpf: %w: %s (%s): %w", ErrNotSupported, f.Name, f.Since, f.Err)
		}
	}
	return fmt.Errorf("bpf: %w", err)
}
