package vault

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Names of objects, and of what comes before their ids.
const (
	HeaderName   = "vault"
	KeysPrefix   = "keys/"
	DisksPrefix  = "disks/"
	PointsPrefix = "points/"
	PacksPrefix  = "packs/"
	DeadPrefix   = "dead/"
	LeasesPrefix = "leases/"
	LostPrefix   = "lost/"
	AsidePrefix  = "aside/"
)

const timeForm = "20060102T150405Z"

// KeyName returns the name of a key file.
func KeyName(id ID) string { return KeysPrefix + id.String() }

// DiskName returns the name of the object of a disk.
func DiskName(id ID) string { return DisksPrefix + id.String() }

// LeaseName returns the name of a lease.
func LeaseName(id ID) string { return LeasesPrefix + id.String() }

// PointName is where a point lies.
type PointName struct {
	Disk ID
	Time time.Time // to the second, in UTC
	ID   ID
}

func (p PointName) String() string {
	return PointsPrefix + p.Disk.String() + "/" + p.Time.UTC().Format(timeForm) + "-" + p.ID.String()
}

// Lost returns the name of the object that says that the point lost something.
func (p PointName) Lost() string { return LostPrefix + strings.TrimPrefix(p.String(), PointsPrefix) }

// ParsePointName reads the name of a point.
func ParsePointName(name string) (p PointName, err error) {
	fault := fmt.Errorf("vault: %q: %w: no name of a point", name, ErrNotVault)
	rest, ok := strings.CutPrefix(name, PointsPrefix)
	disk, rest, slash := strings.Cut(rest, "/")
	when, id, dash := strings.Cut(rest, "-")
	if !ok || !slash || !dash {
		return p, fault
	}
	if p.Disk, err = ParseID(disk); err != nil {
		return p, fault
	}
	if p.ID, err = ParseID(id); err != nil {
		return p, fault
	}
	if p.Time, err = time.Parse(timeForm, when); err != nil || p.String() != name {
		return p, fault
	}
	return p, nil
}

// PackName is where a pack lies.
type PackName struct {
	ID         ID
	Generation uint32
}

func (p PackName) String() string {
	return fmt.Sprintf("%s%x/%s", PacksPrefix, p.ID[:1], p.file())
}

// Dead returns the name of the object that says that the pack is not needed.
func (p PackName) Dead() string { return DeadPrefix + p.file() }

func (p PackName) file() string {
	return p.ID.String() + "." + strconv.FormatUint(uint64(p.Generation), 10)
}

// ParsePackName reads the name of a pack, or of its Dead.
func ParsePackName(name string) (p PackName, err error) {
	file := name[strings.LastIndexByte(name, '/')+1:]
	id, generation, ok := strings.Cut(file, ".")
	if p.ID, err = ParseID(id); ok && err == nil {
		var n uint64
		n, err = strconv.ParseUint(generation, 10, 32)
		p.Generation = uint32(n)
	}
	if !ok || err != nil || name != p.String() && name != p.Dead() {
		return PackName{}, fmt.Errorf("vault: %q: %w: no name of a pack", name, ErrNotVault)
	}
	return p, nil
}

// ParseID reads an id as String writes it.
func ParseID(s string) (id ID, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) || ID(b).String() != s || ID(b).IsZero() {
		return id, fmt.Errorf("vault: %q: %w: no id", s, ErrNotVault)
	}
	return ID(b), nil
}

// MarshalText writes the id as String does.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads an id that is not zeros.
func (id *ID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseID(string(b))
	return err
}
