package dmthin

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/format/pdata"
	"tidemark/format/thin"
	"tidemark/linux/atomicfile"
	"tidemark/linux/dm"
	"tidemark/linux/sysfs"
)

// Options say where the ownership of metadata snapshots is kept. Both are required.
type Options struct {
	RunDir   string // gone after a reboot
	StateDir string
}

// record says which metadata snapshot is ours.
type record struct {
	Version int    `json:"version"`
	Pool    string `json:"pool"`  // its device-mapper UUID, or its name
	Block   uint64 `json:"block"` // 0: it was about to be taken
	Sum     string `json:"sum"`   // of what the block holds
}

const recordVersion = 1

// Held is the metadata snapshot of a pool, taken by us.
type Held struct {
	*thin.View

	pool Pool
	ctl  *dm.Control
	dev  *block.Device
	lock *os.File
	keep string // path of the record
	held bool   // the kernel holds it
}

// Hold takes the metadata snapshot of a pool, releasing first one that a dead process of ours has
// left, and opens the metadata to read it. Close it soon: as long as it is held the pool frees no
// metadata. ctl must stay open until then. The error wraps ErrHeld when a living process, or another
// program, holds it.
func (p Pool) Hold(ctl *dm.Control, o Options) (_ *Held, err error) {
	name := strings.ReplaceAll(p.Name, "/", "_")
	h := &Held{pool: p, ctl: ctl, keep: filepath.Join(o.StateDir, "thin", name+".json")}
	lock := filepath.Join(o.RunDir, "thin", name+".lock")
	if err := errors.Join(os.MkdirAll(filepath.Dir(lock), 0o755), atomicfile.MkdirAll(filepath.Dir(h.keep), 0o755)); err != nil {
		return nil, fmt.Errorf("dmthin: %s: %w", p.Name, err)
	}
	if h.lock, err = os.OpenFile(lock, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, fmt.Errorf("dmthin: %s: %w", p.Name, err)
	}
	if err := unix.Flock(int(h.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w by another run", ErrHeld)
		}
		return nil, errors.Join(fmt.Errorf("dmthin: %s: %w", p.Name, err), h.lock.Close())
	}
	if err := h.take(); err != nil {
		return nil, errors.Join(fmt.Errorf("dmthin: %s: %w", p.Name, err), h.Close())
	}
	return h, nil
}

func (h *Held) take() error {
	node, err := sysfs.Node(h.pool.Metadata)
	if err != nil {
		return err
	}
	// The kernel writes past the page cache.
	if h.dev, err = block.Open(node, block.Options{Direct: true}); err != nil {
		return err
	}
	if err := h.releaseLeft(); err != nil {
		return err
	}
	if err := h.write(record{}); err != nil {
		return err
	}
	if err := h.message("reserve_metadata_snap"); err != nil {
		return errors.Join(err, os.Remove(h.keep))
	}
	h.held = true
	st, err := h.pool.Status(h.ctl)
	if err != nil {
		return err
	}
	sum, err := h.sum(st.Held)
	if err != nil {
		return err
	}
	if err := h.write(record{Block: st.Held, Sum: sum}); err != nil {
		return err
	}
	m, err := thin.Open(h.dev, h.dev.Size())
	if err != nil {
		return err
	}
	h.View, err = m.SnapshotAt(thin.Addr(st.Held))
	return err
}

// releaseLeft releases a metadata snapshot that a dead process of ours has left.
func (h *Held) releaseLeft() error {
	st, err := h.pool.Status(h.ctl)
	switch {
	case err != nil:
		return err
	case st.Mode == "ro":
		return fmt.Errorf("%w: it is read-only", ErrFailed)
	case st.Held == 0:
		return nil
	}
	var r record
	err = atomicfile.ReadJSON(h.keep, &r)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, atomicfile.ErrDamaged) {
		return err
	}
	ours := err == nil && r.Version == recordVersion && r.Pool == h.name()
	if ours && r.Block != 0 {
		sum, err := h.sum(st.Held)
		if err != nil {
			return err
		}
		ours = r.Block == st.Held && r.Sum == sum
	}
	if !ours {
		return fmt.Errorf("%w by another program, in block %d: \"dmsetup message %s 0 release_metadata_snap\" releases it when nobody needs it", ErrHeld, st.Held, h.pool.Name)
	}
	return h.message("release_metadata_snap")
}

// name is what a record knows the pool by.
func (h *Held) name() string {
	if h.pool.UUID != "" {
		return h.pool.UUID
	}
	return h.pool.Name
}

func (h *Held) message(text string) error {
	if _, err := h.ctl.Message(h.pool.Name, 0, text); err != nil {
		return fmt.Errorf("%s: %w", text, err)
	}
	return nil
}

// sum is that of a block of metadata.
func (h *Held) sum(at uint64) (string, error) {
	if at == 0 || at >= uint64(h.dev.Size())/pdata.BlockSize {
		return "", fmt.Errorf("the kernel says that the metadata snapshot is in block %d", at)
	}
	b := pdata.Buffer(1)
	if _, err := h.dev.ReadAt(b, thin.Addr(at).Offset()); err != nil {
		return "", err
	}
	sum := blake3.Sum256(b)
	return hex.EncodeToString(sum[:16]), nil
}

func (h *Held) write(r record) error {
	r.Version, r.Pool = recordVersion, h.name()
	return atomicfile.WriteJSON(h.keep, atomicfile.Options{Durable: true}, r)
}

// Device returns the open metadata device, which stays the Held's.
func (h *Held) Device() *block.Device { return h.dev }

// Close releases the metadata snapshot.
func (h *Held) Close() error {
	var errs []error
	if h.held {
		err := h.message("release_metadata_snap")
		if err == nil {
			err = os.Remove(h.keep)
		}
		errs, h.held = append(errs, err), false
	}
	if h.dev != nil {
		errs = append(errs, h.dev.Close())
	}
	if err := errors.Join(append(errs, h.lock.Close())...); err != nil {
		return fmt.Errorf("dmthin: %s: %w", h.pool.Name, err)
	}
	return nil
}
