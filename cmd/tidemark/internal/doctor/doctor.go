// Package doctor checks what this kernel and this user can do for tidemark, and
// reports the consequence of each check.
//
// It tries features rather than compare versions, and changes nothing on the
// machine: no filesystem is frozen, nothing is mounted, no program stays loaded. At
// most the kernel loads a module that a check needs. What a mirror does to track, it does
// as well, and undoes.
// Its functions may be called from several goroutines at once.
package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/linux/bpf"
	"tidemark/linux/dm"
	trackbpf "tidemark/track/bpf"
)

// Check is one thing that was looked at.
type Check struct {
	Name        string `json:"name"`
	OK          bool   `json:"ok"`
	Detail      string `json:"detail"`      // what was found
	Consequence string `json:"consequence"` // what follows for the user
}

// Live says how a device in use can be mirrored here.
type Live string

// The ways to mirror a device in use, the best first.
const (
	Incremental Live = "incremental" // runs read only what changed
	Scan        Live = "scan"        // runs read the whole source
	None        Live = "none"        // only image files and devices that are not in use
)

// Report is the outcome of all checks.
type Report struct {
	Live   Live     `json:"live"`
	Checks []Check  `json:"checks"`
	Kernel string   `json:"kernel"`         // release of the one that runs, as uname -r
	Tested []string `json:"tested_kernels"` // series, as Debian builds them
}

// tested are the kernels of the test rig; docs/manual/kernels.md has them, too.
func tested() []string { return []string{"5.10", "6.1", "6.12", "7.3"} }

// Options say where to look. The zero value works.
type Options struct {
	BPFFS  string // bpf.DefaultFS when empty
	RunDir string // trackbpf.DefaultRunDir when empty
}

// probe is one check: what it tries, and what follows from either outcome.
type probe struct {
	name         string
	try          func() (detail string, err error)
	good, bad    string
	live, tracks bool // whether a live mirror, or tracking, depends on it
}

// Run does all checks.
func Run(o Options) Report {
	rep := Report{Live: Incremental, Kernel: release(), Tested: tested()}
	for _, p := range probes(o) {
		detail, err := p.try()
		c := Check{Name: p.name, OK: err == nil, Detail: detail, Consequence: p.good}
		if err != nil {
			c.Detail, c.Consequence = detailOf(err, os.Geteuid()), p.bad
		}
		switch {
		case err != nil && p.live:
			rep.Live = None
		case err != nil && p.tracks && rep.Live == Incremental:
			rep.Live = Scan
		}
		rep.Checks = append(rep.Checks, c)
	}
	return rep
}

// release is what uname -r prints.
func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// detailOf describes the error of a check, for a user. To one without the right to do it, the
// errors of libraries and of the kernel would describe only their own workings.
func detailOf(err error, uid int) string {
	if uid == 0 {
		return err.Error()
	}
	for _, refusal := range []error{unix.EPERM, unix.EACCES} {
		if errors.Is(err, refusal) {
			return fmt.Sprintf("needs root (%v)", refusal)
		}
	}
	return err.Error()
}

func probes(o Options) []probe {
	const scans = "writes cannot be tracked: each run reads the whole source (--tracker scan)"
	return []probe{
		{
			name: "btf", try: tryBTF, tracks: true,
			good: "the kernel describes its structures, so tracking programs fit it",
			bad:  scans,
		},
		{
			name: "tp_btf", try: tryTracing, tracks: true,
			good: "writes can be tracked: runs read only what changed",
			bad:  scans,
		},
		{
			name: "bpffs", try: func() (string, error) { return tryBPFFS(o.BPFFS) }, tracks: true,
			good: "tracking goes on when tidemark ends",
			bad:  scans,
		},
		{
			name: "run folder", try: func() (string, error) { return tryRunDir(cmp.Or(o.RunDir, trackbpf.DefaultRunDir)) }, tracks: true,
			good: "what changed is kept there until a mirror has read it",
			bad:  scans,
		},
		{
			name: "capabilities", try: func() (string, error) { return tryCapabilities("/proc/self/status") }, live: true,
			good: "this user may load tracking programs and freeze filesystems",
			bad:  "only image files and devices that are not in use can be mirrored: run as root",
		},
		{
			name: "freeze", try: tryFreeze, live: true,
			good: "mounted filesystems can be held still for the instant of a copy",
			bad:  "mounted filesystems cannot be copied consistently: unmount, and use --view offline",
		},
		{
			name: "loop", try: func() (string, error) { return tryOpen("/dev/loop-control") },
			good: "image files can be attached and mounted (losetup); make demo and make test work",
			bad:  "mirrors in image files cannot be mounted here; make demo and make test fail; mirrors are not affected",
		},
		{
			name: "device-mapper", try: tryDeviceMapper,
			good: "LVM and dm-crypt devices can be mirrored like any other; tidemark era can create and open devices",
			bad:  "tidemark era cannot create or open devices; mirrors of other devices are not affected",
		},
		{
			name: "ublk", try: func() (string, error) { return tryOpen("/dev/ublk-control") },
			good: "block devices can be served from user space; mirrors do not need it",
			bad:  "no block devices served through ublk; mirrors do not need it",
		},
		{
			name: "nbd", try: tryNBD,
			good: "images can be attached over NBD (nbd-client); mirrors do not need it",
			bad:  "images cannot be attached over NBD; mirrors do not need it",
		},
	}
}

const btfFile = "/sys/kernel/btf/vmlinux"

func tryBTF() (string, error) {
	f, err := os.Open(btfFile)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return btfFile, nil
}

// tryTracing does what a mirror does: it loads and attaches the programs. A feature that is
// missing is named first.
func tryTracing() (string, error) {
	features := bpf.Probe()
	for _, f := range features {
		if f.Err != nil {
			return "", fmt.Errorf("%s (%s): %w", f.Name, f.Since, f.Err)
		}
	}
	const blocks = 1 << 20
	if err := bpf.Try(blocks); err != nil {
		return "", err
	}
	const done = "the tracking programs were loaded and attached, and removed again"
	if why := bpf.Plain(); why != nil {
		return fmt.Sprintf("%s; each block takes a byte of memory, not a bit: no %v", done, why), nil
	}
	return done, nil
}

// tryRunDir asks whether the folder of the state of tracking, or the one that it would be made
// in, can be written to.
func tryRunDir(path string) (string, error) {
	at := path
	err := unix.Access(at, unix.W_OK|unix.X_OK)
	for errors.Is(err, unix.ENOENT) && at != filepath.Dir(at) {
		at = filepath.Dir(at)
		err = unix.Access(at, unix.W_OK|unix.X_OK)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", at, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return "", fmt.Errorf("%s: %w", at, err)
	}
	if st.Bavail == 0 || st.Files > 0 && st.Ffree == 0 {
		return "", fmt.Errorf("%s: %w", at, unix.ENOSPC)
	}
	if at != path {
		return path + " can be made", nil
	}
	return path, nil
}

func tryBPFFS(path string) (string, error) {
	if path == "" {
		path = bpf.DefaultFS
	}
	mounted, err := bpf.IsFS(path)
	switch {
	case err == nil && mounted:
		return "mounted at " + path, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", err
	case err != nil:
		return "", fmt.Errorf("%s does not exist", path)
	}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return "", err
	}
	if !strings.Contains(string(known), "\tbpf\n") {
		return "", errors.New("the kernel does not know bpffs")
	}
	return "not mounted; tidemark mounts it at " + path + " when it starts tracking", nil
}

// tryCapabilities looks for CAP_SYS_ADMIN, which freezing needs, and which also
// stands in for CAP_BPF and CAP_PERFMON (capabilities(7)).
func tryCapabilities(status string) (string, error) {
	text, err := os.ReadFile(status)
	if err != nil {
		return "", err
	}
	effective, err := effectiveOf(string(text))
	if err != nil {
		return "", fmt.Errorf("%s: %w", status, err)
	}
	if effective>>unix.CAP_SYS_ADMIN&1 == 0 {
		return "", errors.New("CAP_SYS_ADMIN is missing")
	}
	return "CAP_SYS_ADMIN", nil
}

// effectiveOf returns the bits of the line CapEff.
func effectiveOf(status string) (uint64, error) {
	for line := range strings.Lines(status) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		}
	}
	return 0, errors.New("no line CapEff")
}

// tryFreeze asks for a thaw of /proc, which nothing can freeze: the kernel
// checks the right first (EPERM), then says that it is not frozen (EINVAL).
func tryFreeze() (string, error) {
	f, err := os.Open("/proc")
	if err != nil {
		return "", err
	}
	defer f.Close()
	const fithaw = 0xc0045878 // FITHAW, include/uapi/linux/fs.h
	if err := unix.IoctlSetInt(int(f.Fd()), fithaw, 0); !errors.Is(err, unix.EINVAL) {
		if err == nil {
			err = errors.New("a filesystem that was not frozen could be thawed")
		}
		return "", fmt.Errorf("FITHAW: %w", err)
	}
	return "FIFREEZE and FITHAW are allowed", nil
}

// tryDeviceMapper asks for the targets that tidemark uses, whose modules the kernel
// loads if need be.
func tryDeviceMapper() (string, error) {
	ctl, err := dm.Open()
	if err != nil {
		return "", err
	}
	defer ctl.Close()
	version, err := ctl.Version()
	if err != nil {
		return "", err
	}
	found := []string{"version " + version.String()}
	for _, target := range []string{"era", "snapshot"} {
		v, err := ctl.TargetVersion(target)
		if err != nil {
			return "", err
		}
		found = append(found, "target "+target+" "+v.String())
	}
	return strings.Join(found, ", "), nil
}

func tryOpen(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return path, nil
}

func tryNBD() (string, error) {
	for _, path := range []string{"/sys/module/nbd", "/sys/block/nbd0"} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", errors.New("the nbd driver is not loaded")
}
