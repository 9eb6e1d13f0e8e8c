package bpf

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tidemark/extent"
	"tidemark/linux/atomicfile"
	"tidemark/linux/rawfile"
	"tidemark/linux/sysfs"
	"tidemark/track/history"
	"tidemark/witness"
)

// Place is where the tracking of one disk is written down for the next boot.
type Place struct {
	Dir  string // for all disks
	Name string // of the disk, the same at every boot
	// Root says that Dir lies on that disk, whose filesystem is never unmounted. Else it must not.
	Root bool
}

// The files of a Place. A record that is taken up has another name before tracking begins, so that
// none is taken up twice.
func (p Place) saved() string { return filepath.Join(p.Dir, p.Name+".saved") }
func (p Place) used() string  { return filepath.Join(p.Dir, p.Name+".used") }
func (p Place) raw() string   { return filepath.Join(p.Dir, p.Name+".raw") } // see package rawfile

// saved is what a Place holds. In the file a line goes before it, with a checksum.
type saved struct {
	Time time.Time `json:"time"`
	// Lost says why there is nothing to be taken up; the rest may be empty then.
	Lost string `json:"lost,omitempty"`
	// Identity names the disk as its maker, or device-mapper, does; empty where nobody does.
	Identity string          `json:"identity"`
	Record   record          `json:"record"`
	Epoch    uint64          `json:"epoch"` // that was open; nothing had changed in it
	Floor    uint64          `json:"floor"` // as in bpf.Header, with what follows
	Why      uint64          `json:"why"`
	Misses   uint64          `json:"misses"`
	Doubted  uint64          `json:"doubted"`
	History  history.Saved   `json:"history"`
	Witness  witness.Witness `json:"witness"`
}

const (
	savedMagic = "tidemark-tracking 1 "
	savedMax   = 256 << 20 // bytes
)

// write replaces the record of a place, and returns when it would survive a power cut.
func (p Place) write(sv saved) error {
	all, err := sv.encode()
	if err != nil {
		return err
	}
	if p.Root {
		f, err := rawfile.Open(p.raw())
		if err != nil {
			return err
		}
		return errors.Join(f.Write(all), f.Close())
	}
	if err := atomicfile.MkdirAll(p.Dir, 0o700); err != nil {
		return history.Unwritable(err)
	}
	return history.Unwritable(atomicfile.Write(p.saved(), atomicfile.Options{Durable: true}, func(f *os.File) error {
		_, err := f.Write(all)
		return err
	}))
}

func (sv saved) encode() ([]byte, error) {
	raw, err := json.Marshal(sv)
	if err != nil {
		return nil, fmt.Errorf("track: save: %w", err)
	}
	return fmt.Appendf(nil, "%s%x\n%s", savedMagic, sha256.Sum256(raw), raw), nil
}

// take returns the record of a place, which can then not be taken again, or in words why there is
// none.
// Places are bytes of the disk that count as changed because of that.
func (p Place) take() (sv saved, lost string, places extent.Set, err error) {
	if p.Root {
		return p.takeRaw()
	}
	sv, lost, err = p.read()
	if err != nil || lost == notSaved {
		return sv, lost, places, err
	}
	if lost != unclean {
		err = os.Rename(p.saved(), p.used())
	}
	if err == nil {
		err = atomicfile.SyncDir(p.Dir)
	}
	return sv, lost, places, history.Unwritable(err)
}

// Why there is no record.
const (
	notSaved = "what was tracked was not saved when the machine was shut down"
	unclean  = "the machine was not shut down cleanly (a power cut or a crash), or its shutdown did not come to saving what was tracked"
)

func (p Place) read() (sv saved, lost string, err error) {
	f, err := os.Open(p.saved())
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(p.used()); err == nil {
			return sv, unclean, nil
		}
		return sv, notSaved, nil
	}
	if err != nil {
		return sv, "", fmt.Errorf("track: %w", err)
	}
	defer f.Close()
	all, err := io.ReadAll(io.LimitReader(f, savedMax+1))
	if err != nil {
		return sv, "", fmt.Errorf("track: %w", err)
	}
	sv, lost = decode(all)
	return sv, lost, nil
}

// decode is the inverse of encode, or says why that cannot be.
func decode(all []byte) (sv saved, lost string) {
	head, raw, _ := bytes.Cut(all, []byte("\n"))
	sum, ours := strings.CutPrefix(string(head), savedMagic)
	switch {
	case !ours:
		return sv, "what was saved is of another version of tidemark"
	case len(all) > savedMax || sum != fmt.Sprintf("%x", sha256.Sum256(raw)):
		return sv, "what was saved is damaged"
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&sv); err != nil {
		return saved{}, "what was saved is of another version of tidemark"
	}
	return sv, sv.Lost
}

// identityOf returns what names a disk at every boot: the UUID of a device of device-mapper or md,
// else what its maker gave it. It is empty where there is nothing of that.
func identityOf(disk string) string {
	dir := sysfs.DiskDir(disk)
	for _, name := range []string{"dm/uuid", "md/uuid", "wwid", "device/wwid", "serial", "device/serial"} {
		if text, err := sysfs.Text(filepath.Join(dir, name)); err == nil && text != "" {
			return name + " " + text
		}
	}
	return ""
}
