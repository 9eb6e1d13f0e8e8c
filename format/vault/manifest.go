package vault

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"
)

// Disk is what a vault knows of a disk. Its id is in its name.
type Disk struct {
	Name string `json:"name"` // that users call it by; no two disks of a vault have the same
	Host string `json:"host"` // where it was first seen
	// KnownBy are names of what it is made of, such as the UUID of a filesystem.
	KnownBy []string `json:"known_by"`
}

// How hooks ended.
const (
	HooksOK        = "ok"
	PostHookFailed = "post-hook failed"
)

// Point is the manifest of a point. Its id and that of its disk are in its name.
type Point struct {
	Size   int64     `json:"size"`   // of the disk, bytes
	Moment time.Time `json:"moment"` // of the content, in UTC
	Mark   string    `json:"mark"`   // of the tracker at that moment; "": nothing vouches for one
	// Root is the page from which the map hangs; nil where all of the disk is zeros.
	Root    *Ref     `json:"root"`
	Parent  string   `json:"parent"`  // the name of the point that it was made from; ""
	Run     string   `json:"run"`     // common to the points of several disks at one instant
	Host    string   `json:"host"`    // that made it
	Tracker string   `json:"tracker"` // kind
	View    string   `json:"view"`    // kind
	Frozen  bool     `json:"frozen"`  // filesystems were, at the moment
	Changed int64    `json:"changed"` // bytes that the tracker named, or the whole disk
	Read    int64    `json:"read"`    // bytes of the source
	Stored  int64    `json:"stored"`  // bytes of packs that were written for it
	Tags    []string `json:"tags"`    // sorted, each once
	// Hooks tells how the hooks of the run ended: HooksOK or PostHookFailed; "": there were none. A run
	// whose pre-hook fails makes no point.
	Hooks string `json:"hooks,omitempty"`
}

// MaxLease is how long a lease lasts at most, unless it is renewed.
const MaxLease = 24 * time.Hour

// Lease says that somebody is at work in a vault.
type Lease struct {
	Work    string        `json:"work"` // what is being done
	Host    string        `json:"host"`
	Process int           `json:"process"`
	Lasts   time.Duration `json:"lasts"` // nanoseconds from when the store says that it was written
	// Begun is when the store says that the first lease of this work was written; zero in that one.
	Begun time.Time `json:"begun"`
}

// Encode returns the content of the object of a disk.
func (d Disk) Encode() ([]byte, error) { return encode("disk", d, d.check()) }

// Encode returns the content of the object of a point.
func (p Point) Encode() ([]byte, error) { return encode("point", p, p.check()) }

// Encode returns the content of a lease.
func (l Lease) Encode() ([]byte, error) { return encode("lease", l, l.check()) }

// ParseDisk reads the content of the object of a disk.
func ParseDisk(b []byte) (Disk, error) { return parse("disk", b, Disk.check) }

// ParsePoint reads the content of the object of a point.
func ParsePoint(b []byte) (Point, error) { return parse("point", b, Point.check) }

// ParseLease reads the content of a lease.
func ParseLease(b []byte) (Lease, error) { return parse("lease", b, Lease.check) }

func (d Disk) check() error {
	if d.Name == "" {
		return fmt.Errorf("%w: it has no name", ErrDamaged)
	}
	return texts(append([]string{d.Name, d.Host}, d.KnownBy...)...)
}

func (p Point) check() error {
	switch {
	case p.Size < 0 || p.Changed < 0 || p.Read < 0 || p.Stored < 0:
		return fmt.Errorf("%w: sizes of %d, %d, %d and %d bytes", ErrDamaged, p.Size, p.Changed, p.Read, p.Stored)
	case p.Root != nil && (p.Size == 0 || !p.Root.valid()):
		return fmt.Errorf("%w: a map of no bytes, or in no pack", ErrDamaged)
	case p.Moment.Location() != time.UTC:
		return fmt.Errorf("%w: its moment %v is not in UTC", ErrDamaged, p.Moment)
	case p.Hooks != "" && p.Hooks != HooksOK && p.Hooks != PostHookFailed:
		return fmt.Errorf("%w: hooks %q", ErrDamaged, p.Hooks)
	case !slices.IsSorted(p.Tags) || len(slices.Compact(slices.Clone(p.Tags))) != len(p.Tags):
		return fmt.Errorf("%w: tags %q are not sorted", ErrDamaged, p.Tags)
	}
	return texts(append([]string{p.Mark, p.Parent, p.Run, p.Host, p.Tracker, p.View}, p.Tags...)...)
}

func (l Lease) check() error {
	if l.Lasts <= 0 || l.Lasts > MaxLease || l.Process < 0 || l.Begun.Location() != time.UTC {
		return fmt.Errorf("%w: a lease of %v by process %d", ErrDamaged, l.Lasts, l.Process)
	}
	return texts(l.Work, l.Host)
}

// texts refuses what JSON would change.
func texts(all ...string) error {
	for _, s := range all {
		if !utf8.ValidString(s) {
			return fmt.Errorf("%w: %q is no text", ErrDamaged, s)
		}
	}
	return nil
}

func encode(what string, v any, fault error) ([]byte, error) {
	var b []byte
	if fault == nil {
		b, fault = json.Marshal(v)
	}
	if fault != nil {
		return nil, fmt.Errorf("vault: %s: %w", what, fault)
	}
	return b, nil
}

func parse[T any](what string, b []byte, check func(T) error) (v T, err error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err = dec.Decode(&v); err != nil {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err == nil {
		err = check(v)
	}
	if err == nil {
		again, fault := json.Marshal(v)
		if fault != nil || !bytes.Equal(again, b) {
			err = fmt.Errorf("%w: it is not written as it should be", ErrDamaged)
		}
	}
	if err != nil {
		var none T
		return none, fmt.Errorf("vault: %s: %w", what, err)
	}
	return v, nil
}
