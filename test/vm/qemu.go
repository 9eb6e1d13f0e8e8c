package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"tidemark/test/vm/wire"
)

// machineArgs is the emulated machine. Three settings are there because guests crash or
// hang at random without them:
//
//   - With cx16 Linux 6.12 double-faults in early boot under QEMU 7.2.
//   - With two CPUs, each with its thread, about one boot in two hundred dies of a stray
//     int3. The kernel patches its code (static branches, tracepoints, BPF trampolines)
//     while the other CPU runs; that CPU's thread can translate the old bytes between
//     QEMU's invalidation of the translation and the store that follows it.
//   - For a machine that can have but one CPU, or has one thread for all, QEMU makes a
//     locked instruction of plain ones (CF_PARALLEL in tcg/), which leaves out the
//     barrier by which a virtio driver and QEMU's own threads agree on who wakes whom.
//     Guests were seen to wait for a disk for ever, in one run of all tests of several.
//     (Before 8.1 mfence was left out as well, which NVMe needs.)
//
// So there is one CPU, and room for a second.
//
// QEMU emulates AVX, CRC32C and SHA by calls, CRC32C even bit by bit, string
// instructions (erms, fsrm) a byte at a time, and XSAVE in every task switch: the code
// that kernel and programs have for processors without them is quicker.
var machineArgs = [...]string{
	"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
	"-machine", "pc", "-smp", "1,maxcpus=2",
	"-cpu", "max,-cx16,-erms,-fsrm,-xsave,-mpx,-pku,-avx2,-avx,-sse4.2,-sha-ni",
}

// kernelArgs make a guest quick, quiet, and end on an oops or a panic. Debian's kernels
// zero each page they hand out, which under emulation makes reading a disk five times
// as slow, and test their ciphers in every boot, which takes a second. Linux 5.10 panics where
// the host is so busy that ten ticks of the timer do not come in time, unless it is not to check.
const kernelArgs = "console=ttyS0 loglevel=5 panic=-1 mitigations=off oops=panic random.trust_cpu=on tsc=reliable " +
	"nowatchdog rcupdate.rcu_cpu_stall_suppress=1 init_on_alloc=0 cryptomgr.notests=1 no_timer_check"

// kernelArgs is the kernel's command line.
func (cfg Config) kernelArgs() string {
	args := kernelArgs
	if khz := tscKHz(); khz > 0 {
		args += fmt.Sprintf(" tsc_early_khz=%.0f", khz)
	}
	if cfg.System == nil {
		return args
	}
	return args + " " + cfg.System.Args
}

// tscKHz is how fast the host's time stamp counter counts, which is also the guest's; 0 where that is not
// known. A guest that has to find out takes the time that a busy host stopped it for its own: its
// clock was seen to run fifteen times too fast, and each time limit in it ended that early.
func tscKHz() float64 {
	text, err := os.ReadFile("/proc/cpuinfo")
	// Of a processor that counts what it does (APERF) the kernel tells how fast it is now.
	if err != nil || strings.Contains(string(text), " aperfmperf") {
		return 0
	}
	_, value, _ := strings.Cut(string(text), "cpu MHz\t\t: ")
	value, _, _ = strings.Cut(value, "\n")
	mhz, err := strconv.ParseFloat(value, 64)
	if err != nil {
		return 0
	}
	return mhz * 1000
}

// ports are the serial ports, in the order of their numbers.
var ports = [...]string{wire.PortTest, wire.PortTalk, wire.PortFiles}

// qemu returns the command that runs a guest whose sockets and console are in dir.
func (c cache) qemu(dir, image string, cfg Config) *exec.Cmd {
	lib := filepath.Join(c.emulator(), "lib/x86_64-linux-gnu")
	usrLib := filepath.Join(c.emulator(), "usr/lib/x86_64-linux-gnu")
	share := filepath.Join(c.emulator(), "usr/share")
	args := []string{
		"--library-path", lib + ":" + usrLib, filepath.Join(c.emulator(), "usr/bin/qemu-system-x86_64"),
		"-L", filepath.Join(share, "qemu"), "-L", filepath.Join(share, "seabios"),
	}
	args = append(args, machineArgs[:]...)
	if cfg.Counting {
		args = append(args, "-accel", "tcg,thread=single", "-icount", "shift=0")
	} else {
		args = append(args, "-accel", "tcg,thread=multi")
	}
	args = append(args,
		"-m", fmt.Sprint(cfg.MemMB),
		"-kernel", filepath.Join(c.kernel(cfg.Kernel), "vmlinux"), "-initrd", image, "-append", cfg.kernelArgs(),
		"-chardev", "file,id=console,path="+consoleFile(dir), "-serial", "chardev:console",
		"-device", "virtio-serial-pci", "-device", "virtio-scsi-pci,id=scsi,ioeventfd=off")
	for i, port := range ports {
		args = append(args,
			"-chardev", fmt.Sprintf("socket,id=port%d,path=%s", i, socket(dir, port)),
			"-device", fmt.Sprintf("virtserialport,nr=%d,chardev=port%d,name=%s", i+1, i, port))
	}
	for i, disk := range cfg.Disks {
		args = append(args, disk.args(fmt.Sprintf("disk%d", i), dir)...)
	}
	cmd := exec.Command(filepath.Join(lib, "ld-linux-x86-64.so.2"), args...)
	cmd.Env = append(os.Environ(), "QEMU_MODULE_DIR="+filepath.Join(usrLib, "qemu"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// args attaches a disk. The thread of the CPU starts its requests (no ioeventfd): waking
// another one for it takes longer. A plain disk passes no flush on: it loses nothing
// when QEMU is killed, and the machine's own disk is spared.
func (d Disk) args(node, dir string) []string {
	backend := "driver=file,node-name=" + node + ",discard=unmap,cache.no-flush=on,filename=" + escape(d.Path)
	if d.Volatile {
		backend = "driver=nbd,node-name=" + node + ",discard=unmap,server.type=unix,server.path=" + escape(socket(dir, d.Name))
	}
	serial := ",serial=" + d.Name
	var devices []string
	switch d.Bus {
	case "", VirtioBlk:
		devices = []string{"virtio-blk-pci,ioeventfd=off,drive=" + node + serial}
	case VirtioSCSI:
		devices = []string{"scsi-hd,bus=scsi.0,drive=" + node + serial}
	case NVMe:
		devices = []string{"nvme,id=nvme-" + node + serial, "nvme-ns,shared=off,bus=nvme-" + node + ",drive=" + node}
	case NVMeMultipath:
		devices = []string{"nvme,drive=" + node + serial}
	}
	args := []string{"-blockdev", backend}
	for _, device := range devices {
		args = append(args, "-device", device)
	}
	return args
}

// escape doubles commas, which end a value on QEMU's command line.
func escape(value string) string {
	return strings.ReplaceAll(value, ",", ",,")
}

func socket(dir, name string) string {
	return filepath.Join(dir, name+".sock")
}

func consoleFile(dir string) string {
	return filepath.Join(dir, "console")
}
