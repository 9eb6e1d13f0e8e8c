package pairs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tidemark/block"
	format "tidemark/format/vault"
	"tidemark/track"
	"tidemark/transfer"
	"tidemark/transfer/backup"
	"tidemark/transfer/origin"
	"tidemark/transfer/target"
	"tidemark/vault"
	"tidemark/view"
)

var (
	// ErrOtherDisk says that the disk of a vault that would be named after a source is another
	// one. It wraps target.ErrRefused.
	ErrOtherDisk = fmt.Errorf("%w: it is another disk", target.ErrRefused)
	// ErrDiskName says that a disk of a vault cannot be called so.
	ErrDiskName = errors.New("no name of a disk: want one without / and @")
)

// Vault is where sources are backed up to.
type Vault struct {
	*vault.Vault
	Address string
	// Folder is where it lies on this machine, "" where it does not.
	Folder string
	Tags   []string
}

// Backup makes a point of each source in a vault, all of one instant. The target of a pair
// names the disk of the vault that gets the point; "" stands for the one that the source is known
// by, which is made and named after the source where there is none. Reports and errors are as those
// of Mirror.
func Backup(ctx context.Context, pairs []Pair, v Vault, o Options) ([]transfer.Report, error) {
	s := newSession(o, false)
	s.vault = &v
	if len(pairs) > 1 || o.Whole {
		id := make([]byte, 16)
		rand.Read(id)
		s.instant = hex.EncodeToString(id)
	}
	return s.run(ctx, pairs)
}

// PlanBackup is to Backup what Plan is to Mirror.
func PlanBackup(ctx context.Context, pairs []Pair, v Vault, o Options) ([]transfer.Report, error) {
	s := newSession(o, true)
	s.vault = &v
	return s.foretell(ctx, pairs)
}

// disk is a disk of a vault that gets a point.
type disk struct {
	v        *Vault
	disk     vault.Disk // without an id where it is to be made
	newest   *vault.Point
	instant  string // common to the points of one run
	hooks    bool   // the run has some
	inFreeze bool   // the cache lies on a filesystem of the sources
	sink     *backup.Sink
}

// disk finds the disk of the vault for a source.
func (s *session) disk(ctx context.Context, name string, src *block.Device) (*disk, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	all, err := s.vault.Disks(ctx)
	if err != nil {
		return nil, err
	}
	d := &disk{v: s.vault, disk: vault.Disk{Disk: format.Disk{Name: name, Host: host, KnownBy: knownBy(src)}}, instant: s.instant, hooks: s.o.Hooks.Pre != "" || s.o.Hooks.Post != ""}
	if strings.ContainsAny(name, "/@") {
		return nil, fmt.Errorf("%q: %w", name, ErrDiskName)
	}
	there, err := find(all, d.disk.Disk, src)
	if err != nil {
		return nil, fmt.Errorf("target: %s: %w", s.vault.Address, err)
	}
	if there == nil {
		if d.disk.Name == "" {
			d.disk.Name = nameAfter(src)
		}
		return d, nil
	}
	d.disk = *there
	if name != "" && !isKnown(there.Disk, host, src) {
		s.o.note("%s: disk %s of the vault was made of another source: %s on %s", src.Path(), name, strings.Join(there.KnownBy, ", "), there.Host)
	}
	newest, err := s.vault.Newest(ctx, there.ID)
	if d.newest = backup.Base(newest); newest != nil && d.newest == nil {
		s.o.note("%s: the newest point of disk %s lost something: all of the source is read", src.Path(), there.Name)
	}
	return d, err
}

// find returns the disk of that name, or without a name the one that a source is known by, or else
// the one that would be named after it; nil where there is none.
func find(all []vault.Disk, want format.Disk, src *block.Device) (*vault.Disk, error) {
	named := func(name string) *vault.Disk {
		if i := slices.IndexFunc(all, func(d vault.Disk) bool { return d.Name == name }); i >= 0 {
			return &all[i]
		}
		return nil
	}
	if want.Name != "" {
		return named(want.Name), nil
	}
	if !volatile(want.KnownBy) {
		for i := range all {
			if all[i].Host == want.Host && slices.Equal(all[i].KnownBy, want.KnownBy) {
				return &all[i], nil
			}
		}
	}
	name := nameAfter(src)
	if strings.Contains(name, "@") {
		return nil, fmt.Errorf("%q: %w", name, ErrDiskName)
	}
	there := named(name)
	if there != nil && !isKnown(there.Disk, want.Host, src) {
		return nil, fmt.Errorf("disk %s: %w: %s on %s", name, ErrOtherDisk, strings.Join(there.KnownBy, ", "), there.Host)
	}
	return there, nil
}

// nameAfter is how the disk of a source is called where nobody says.
func nameAfter(src *block.Device) string { return filepath.Base(src.Path()) }

// knownBy names what a source is.
func knownBy(src *block.Device) []string {
	st := origin.OfDevice(src)
	if st.Stable != "" {
		return []string{st.Stable}
	}
	return []string{"image=" + st.Path}
}

// isKnown reports whether a disk may be a source: what is known of one only until the next boot
// tells nothing.
func isKnown(d format.Disk, host string, src *block.Device) bool {
	now := knownBy(src)
	return d.Host == host && (slices.Equal(d.KnownBy, now) || volatile(d.KnownBy) || volatile(now))
}

func volatile(known []string) bool { return slices.ContainsFunc(known, origin.Volatile) }

func (d *disk) id() string    { return d.disk.Name }
func (d *disk) name() string  { return d.v.Address + ": " + d.disk.Name }
func (d *disk) owner() string { return "vault " + d.v.ID().String() + " " + d.disk.Name }
func (d *disk) freezes() bool { return d.inFreeze }
func (d *disk) undo() error   { return nil }
func (d *disk) close() error  { return nil }

func (d *disk) mark() track.Mark {
	if d.newest == nil {
		return ""
	}
	return track.Mark(d.newest.Mark)
}

// judge refuses nothing: a point does away with nothing.
func (d *disk) judge(*session, *block.Device, []*block.Device) error { return nil }

func (d *disk) place(sources []*block.Device, o Options) error {
	paths := []string{d.v.Cache()}
	if d.v.Folder != "" {
		paths = append(paths, d.v.Folder)
	}
	covered, err := view.Covered(sources, paths...)
	if err != nil {
		return err
	}
	if d.v.Folder != "" && slices.Contains(covered, d.v.Folder) {
		return fmt.Errorf("target: %s: %w: each backup would change what it copies", d.v.Address, ErrOwnSource)
	}
	d.inFreeze = len(covered) > 0
	return nil
}

func (d *disk) foretell(*block.Device, int64, Options) (transfer.Have, error) {
	return backup.Have(d.newest), nil
}

func (d *disk) open(ctx context.Context, _ *block.Device, _ int64, _ Options) (transfer.Sink, error) {
	made, err := d.v.AddDisk(ctx, d.disk.Disk)
	if err != nil {
		return nil, err
	}
	d.disk = made
	d.sink, err = backup.Open(ctx, d.v.Vault, made, backup.Options{Run: d.instant, Tags: d.v.Tags, Hooks: d.hooks})
	return d.sink, err
}

// told has the progress of a run tell what the vault has stored for it.
func (s *session) told() {
	next := s.o.Progress
	s.o.Progress = func(e transfer.Event) {
		e.Stored = 0
		for _, end := range s.ends {
			if d, ok := end.to.(*disk); ok && d.sink != nil {
				e.Stored += d.sink.Stored()
			}
		}
		next(e)
	}
}

// points adds to the reports of a run the points that it has made.
func (s *session) points(reports []transfer.Report) {
	if s.vault == nil {
		return
	}
	for i := range reports {
		d := s.ends[i].to.(*disk)
		reports[i].Target, reports[i].Disk = s.vault.Address, d.disk.Name
		if d.sink == nil {
			continue
		}
		reports[i].Stored = d.sink.Stored()
		if made := d.sink.Made(); !made.Name.ID.IsZero() {
			reports[i].Point, reports[i].Stored = made.Name.ID.String(), made.Stored
		}
	}
}
