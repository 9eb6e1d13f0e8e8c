// Package wire is what the host side of the VM rig and its guests agree on: the names
// of the serial ports between them and the job that the guest's init is given.
package wire

// Ports of the guest, by their virtio name.
const (
	PortTest  = "tidemark.test"  // guest → host: the output of the test binary, then ExitLine
	PortTalk  = "tidemark.talk"  // both ways: events of the guest, acknowledgements of the host
	PortFiles = "tidemark.files" // guest → host: a tar of OutDir at the end; then a byte back
)

// Paths in the guest.
const (
	JobFile = "/rig/job.json"
	Program = "/rig/test"
	WorkDir = "/rig/work" // working directory of the program; holds the package's testdata
	OutDir  = "/out"      // what is here at the end goes back to the host
)

// ScratchDisk is the name of the disk for temporary files.
const ScratchDisk = "scratch"

// JobDisk is the name of the disk that holds the job of a guest with a system of its
// own: JSON, then zeros.
const JobDisk = "job"

// Marker is the environment variable that tells a test binary that it runs in a guest.
const Marker = "TIDEMARK_GUEST"

// ExitLine begins the line that follows the test binary's output: its exit code is
// the rest. 0x16 never begins a line of a test's own output.
const ExitLine = "\x16rig exit "

// Ends of a system, other than a clean reboot.
const (
	EndKexec = "kexec.target"       // a jump into another kernel, which must be loaded by then
	EndSoft  = "soft-reboot.target" // a reboot of user space alone
	EndPanic = "c"                  // the kernel panics, and resets the machine (SysRq-c)
	EndReset = "b"                  // the kernel resets the machine at once (SysRq-b)
)

// Job is what init does.
type Job struct {
	Args    []string // of the test binary
	Env     []string // added to its environment
	Modules []string // loaded before it starts
	Scratch bool     // the disk ScratchDisk becomes /tmp, an ext4
	End     string   // how a system of its own ends after its tests, one of the Ends; "": it reboots
	Next    *Job     // of what comes after End in the same machine; nil: that ends
}
