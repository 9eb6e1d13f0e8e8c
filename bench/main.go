// Command bench measures tidemark beside its peers and prints the results as
// Markdown, for docs/benchmarks.md.
//
// Everything that is compared is measured in one run, in turns, and given as a
// ratio with its spread: absolute times say more about the machine. It needs
// root, the programs that scripts/setup installs, and about 12 GiB of memory for
// disks in /dev/shm; it takes some twenty minutes. Nobody else should use the
// machine meanwhile.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// measurement is one section of the report.
type measurement struct {
	name string
	run  func(*lab) error
}

func measurements() []measurement {
	return []measurement{
		{"overhead", overhead},
		{"idle", idle},
		{"change", change},
		{"first", first},
		{"frozen", frozen},
		{"restore", restore},
		{"sparse", sparse},
		{"era", eraTools},
		{"stream", stream},
		{"rig", rig},
		{"linear", linear},
		{"merge", merge},
		{"snapshot", snapshots},
		{"store", store},
		{"thin", thinTools},
		{"vault", vaults},
		{"many", many},
	}
}

func main() {
	only := flag.String("only", "", "comma-separated `names` of measurements: overhead, idle, change, first, frozen, restore, sparse, era, stream, rig, linear, merge, snapshot, store, thin, vault, many")
	binary := flag.String("tidemark", "bin/tidemark", "the `program` to measure")
	var p peers
	flag.StringVar(&p.eraCopy, "era-copy", "", "the `program` era_copy in C, for stream")
	flag.StringVar(&p.eraApply, "era-apply", "", "the `program` era_apply in C, for stream")
	vaultSize := flag.Int64("vault-size", 4096, "`MiB` of the disk of vault")
	flag.Parse()
	if err := run(*only, *binary, p, *vaultSize<<20); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(only, binary string, p peers, vaultSize int64) error {
	path, err := filepath.Abs(binary)
	if err != nil {
		return err
	}
	names := strings.Split(only, ",")
	for _, m := range measurements() {
		if only != "" && !slices.Contains(names, m.name) {
			continue
		}
		l, err := newLab(path)
		if err != nil {
			return err
		}
		l.peers, l.vaultSize = p, vaultSize
		err = m.run(l)
		if closeErr := l.close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

// lab is a folder in memory, a tracking of its own, and what has to be undone.
type lab struct {
	tidemark  string
	peers     peers
	vaultSize int64 // bytes
	dir       string
	undo      []func() error
}

func newLab(tidemark string) (*lab, error) {
	dir, err := os.MkdirTemp("/dev/shm", "tidemark-bench-")
	if err != nil {
		return nil, err
	}
	l := &lab{tidemark: tidemark, dir: dir}
	l.later(func() error { return os.RemoveAll(dir) })
	bpffs := filepath.Join(dir, "bpf")
	if err := os.Mkdir(bpffs, 0o700); err != nil {
		return nil, err
	}
	if _, err := l.do("mount", "-t", "bpf", "bpf", bpffs); err != nil {
		return nil, err
	}
	l.later(func() error { _, err := l.do("umount", bpffs); return err })
	return l, nil
}

func (l *lab) later(f func() error) { l.undo = append(l.undo, f) }

func (l *lab) close() error {
	var first error
	for i := len(l.undo) - 1; i >= 0; i-- {
		if err := l.undo[i](); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) environment() []string {
	return append(os.Environ(),
		"TIDEMARK_RUN_DIR="+l.path("run"), "TIDEMARK_STATE_DIR="+l.path("state"), "TIDEMARK_BPFFS="+l.path("bpf"),
		"RESTIC_PASSWORD=bench", "RESTIC_CACHE_DIR="+l.path("restic-cache"), "BORG_BASE_DIR="+l.path("borg-base"),
		"BORG_PASSPHRASE=bench", "XDG_CACHE_HOME="+l.path("cache"), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes", "BORG_RELOCATED_REPO_ACCESS_IS_OK=yes")
}

func (l *lab) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = l.environment()
	return cmd
}

// do runs a program and returns its standard output.
func (l *lab) do(name string, args ...string) (string, error) {
	cmd := l.command(name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		said := stderr.String() + string(out) // a test's failures are in its output
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, said[max(0, len(said)-4000):])
	}
	return strings.TrimSpace(string(out)), nil
}

// load keeps fio writing until the lab is closed.
func (l *lab) load(args ...string) error {
	fio := l.command("fio", append(args, "--name=w", "--time_based", "--runtime=3600", "--output=/dev/null")...)
	if err := fio.Start(); err != nil {
		return err
	}
	l.later(func() error {
		fio.Process.Signal(syscall.SIGTERM)
		fio.Wait() // it was told to end: its exit code says nothing
		return nil
	})
	return nil
}

// loop attaches a new sparse image of size bytes.
func (l *lab) loop(image string, size int64) (string, error) {
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return "", err
	}
	if err := os.Truncate(image, size); err != nil {
		return "", err
	}
	dev, err := l.do("losetup", "--find", "--show", "--direct-io=on", image)
	if err == nil {
		l.later(func() error { _, err := l.do("losetup", "--detach", dev); return err })
	}
	return dev, err
}

// stopTracking ends the tracking of dev, so that its device can be detached.
func (l *lab) stopTracking(dev string) {
	l.later(func() error { _, err := l.do(l.tidemark, "track", "stop", dev); return err })
}
