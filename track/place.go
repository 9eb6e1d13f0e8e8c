package track

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/bpf"
)

// DefaultRunDir is where the state of tracking lives by default.
const DefaultRunDir = "/run/tidemark"

// Options tells where the state lives and how a disk is tracked. The zero value
// works.
type Options struct {
	RunDir string // DefaultRunDir when empty; must not survive a reboot of the disk's state, /run does not
	BPFFS  string // bpf.DefaultFS when empty; mounted when nothing is
	// BlockSize is the granularity in bytes, a power of two from 4096 on; 0
	// chooses 4096 for disks up to 1 TiB, more for larger ones. It only
	// matters when tracking starts; asking for another than the one in use is
	// an error.
	BlockSize int64
	// Drain waits until no write is in flight on the source (for a filesystem:
	// freeze and thaw). It is called when tracking starts on a bio-based disk,
	// before the kernel's own count of I/O in flight is polled.
	Drain func(context.Context) error
}

// place is where the state lives.
type place struct {
	run   string // <RunDir>/track
	bpffs string
	pins  string // <BPFFS>/tidemark/v1, or v1-<which RunDir>
}

func (o Options) place() place {
	run, mnt := o.RunDir, o.BPFFS
	if run == "" {
		run = DefaultRunDir
	}
	if mnt == "" {
		mnt = bpf.DefaultFS
	}
	return place{run: filepath.Join(run, "track"), bpffs: mnt, pins: filepath.Join(mnt, "tidemark", pinsOf(run))}
}

// pinsOf names the folder of the pins that belong to a run folder. Each has its own,
// so that the tracking of one is not swept away as rubbish by another.
func pinsOf(run string) string {
	if run = resolve(run); run == resolve(DefaultRunDir) {
		return "v1"
	}
	sum := sha256.Sum256([]byte(run))
	return "v1-" + hex.EncodeToString(sum[:8])
}

// resolve returns the absolute path without symbolic links, as far as it is there.
func resolve(path string) string {
	path, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	if real, err := filepath.EvalSymlinks(path); err == nil || path == "/" {
		return real
	}
	return filepath.Join(resolve(filepath.Dir(path)), filepath.Base(path))
}

func (p place) lockFile() string                { return filepath.Join(p.run, "lock") }
func (p place) disk(name string) string         { return filepath.Join(p.run, name) }
func (p place) pin(gen string, n uint64) string { return filepath.Join(p.pins, pinName(gen, n)) }

const pinPrefix = "bitmap_" // a dot is not allowed in bpffs

func pinName(gen string, epoch uint64) string { return fmt.Sprintf("%s%s_%d", pinPrefix, gen, epoch) }

// parsePin is the inverse of pinName.
func parsePin(name string) (gen string, epoch uint64, ok bool) {
	rest, found := strings.CutPrefix(name, pinPrefix)
	if !found {
		return "", 0, false
	}
	gen, num, found := strings.Cut(rest, "_")
	if !found {
		return "", 0, false
	}
	if _, err := fmt.Sscanf(num, "%d", &epoch); err != nil || pinName(gen, epoch) != name {
		return "", 0, false
	}
	return gen, epoch, true
}

// lockPoll is how often a lock that someone else holds is tried again.
const lockPoll = 2 * time.Millisecond

// fileLock is a lock that ends with the process at the latest.
type fileLock struct{ f *os.File }

// lockPath takes the lock of the file at path, waiting for whoever has it until
// ctx ends. A file that is there is only read, so that a frozen filesystem does
// not hold up who takes the lock.
func lockPath(ctx context.Context, path string) (*fileLock, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("track: lock: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return &fileLock{f: f}, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("track: lock %s: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("track: lock %s: held by another process: %w", path, ctx.Err()), f.Close())
		case <-time.After(lockPoll):
		}
	}
}

func (l *fileLock) unlock() { l.f.Close() }

// writeFile replaces the file at path in one step. It is not synced: the state
// is worthless after a reboot, and until then a rename is seen whole.
func writeFile(path string, write func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return fmt.Errorf("track: write %s: %w", path, err)
	}
	err = errors.Join(write(f), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("track: write %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}

// writeDurably is writeJSON for a file that survives a power cut, old or new.
func writeDurably(path string, v any) error {
	err := writeFile(path, func(f *os.File) error {
		enc := json.NewEncoder(f)
		enc.SetIndent("", "\t")
		return errors.Join(enc.Encode(v), f.Sync())
	})
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("track: %w", err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func writeJSON(path string, v any) error {
	return writeFile(path, func(f *os.File) error {
		enc := json.NewEncoder(f)
		enc.SetIndent("", "\t")
		return enc.Encode(v)
	})
}

// maxJSON bounds the state files; the largest real one holds 80 leases.
const maxJSON = 1 << 20

var errDamagedState = errors.New("damaged state file")

// readJSON reads a state file; the error wraps fs.ErrNotExist or
// errDamagedState.
func readJSON(path string, v any) error {
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("track: %w", err)
	}
	if st.Size() > maxJSON {
		return fmt.Errorf("track: %s: %w: %d bytes", path, errDamagedState, st.Size())
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("track: %w", err)
	}
	dec := json.NewDecoder(strings.NewReader(string(raw)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("track: %s: %w: %w", path, errDamagedState, err)
	}
	return nil
}

// bootID identifies this boot of the machine.
func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("track: boot id: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}
