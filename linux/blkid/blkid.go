// Package blkid asks blkid(8) of util-linux which block devices carry a UUID or label, and
// what a part of a file or device holds.
//
// For most uses, call [Find] with a tag that [ParseTag] took from what a user wrote, or
// [List] for all devices. [Probe] tells of an image.
//
// The package owns the program's arguments and the reading of what it prints. It never uses
// blkid's cache, which may name devices that are gone, and needs no links of udev. It refuses
// output that it does not know, and does not choose between several devices. It holds no
// state; its functions may be called by several goroutines at once.
package blkid

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// ErrMissing says that there is no program blkid.
var ErrMissing = errors.New("blkid is missing: install util-linux, or name the device by its path")

// Key is what a tag is of.
type Key string

// The keys by which a device can be named, as in fstab(5).
const (
	UUID      Key = "UUID"
	Label     Key = "LABEL"
	PartUUID  Key = "PARTUUID"
	PartLabel Key = "PARTLABEL"
)

// Tag names the devices that have a value for a key.
type Tag struct {
	Key   Key
	Value string
}

// String returns the tag as a user writes it, "LABEL=data".
func (t Tag) String() string { return string(t.Key) + "=" + t.Value }

// ParseTag takes a tag apart; false where name is none, as a path. The value may be empty.
func ParseTag(name string) (Tag, bool) {
	key, value, ok := strings.Cut(name, "=")
	switch t := (Tag{Key(key), value}); t.Key {
	case UUID, Label, PartUUID, PartLabel:
		return t, ok
	}
	return Tag{}, false
}

// Device is what blkid tells of one block device. Values that it does not tell are empty.
type Device struct {
	Path    string // of its node
	Type    string // "ext4", "btrfs", "jbd", "xfs_external_log"
	UUID    string // of the filesystem, or of the whole that it is a member of
	SubUUID string // of the member
	Label   string // with M-C for what is no ASCII, as blkid prints it
	LogUUID string // of a journal, or of the filesystem that a log belongs to
	Journal string // the LogUUID of the journal that an ext filesystem has elsewhere
	// PartUUID and PartLabel are those of the partition, whatever it holds.
	PartUUID, PartLabel string
	TableUUID           string // of the partition table that it holds
	// Usage and Table are told by Probe alone: "filesystem", "raid", "crypto" or "other"; and
	// the kind of the partition table that it holds, "gpt".
	Usage, Table string
}

// List returns all block devices of which blkid knows anything. Those that this process may
// not read are left out. The error wraps ErrMissing.
func List(ctx context.Context) ([]Device, error) { return run(ctx) }

// Find returns the devices that have the tag, none where there is none. Hexadecimal digits
// of UUIDs may be of either case. The error wraps ErrMissing.
func Find(ctx context.Context, t Tag) ([]Device, error) {
	spellings := []string{t.Value}
	if t.Key == UUID || t.Key == PartUUID {
		spellings = append(spellings, strings.ToLower(t.Value), strings.ToUpper(t.Value))
	}
	for i, value := range spellings {
		if i > 0 && value == t.Value {
			continue
		}
		found, err := run(ctx, "-t", Tag{t.Key, value}.String())
		if len(found) > 0 || err != nil {
			return found, err
		}
	}
	return nil, nil
}

// ErrAmbiguous says that there are signs of several things, of which one is left over.
var ErrAmbiguous = errors.New("there are signs of several filesystems (wipefs lists them)")

// Probe tells what the part of the file or device at path holds that begins at byte off
// and has length bytes, 0 for all that follows. The zero Device is nothing that is known.
// The error wraps ErrMissing or ErrAmbiguous.
func Probe(ctx context.Context, path string, off, length int64) (Device, error) {
	found, err := run(ctx, "--probe", "--offset", strconv.FormatInt(off, 10), "--size", strconv.FormatInt(length, 10), "--", path)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == ambiguous {
		return Device{}, fmt.Errorf("blkid: %s at byte %d: %w", path, off, ErrAmbiguous)
	}
	if err != nil || len(found) == 0 {
		return Device{}, err
	}
	if len(found) > 1 {
		return Device{}, fmt.Errorf("blkid: it tells of %d devices instead of %s", len(found), path)
	}
	return found[0], nil
}

// ambiguous is blkid's exit code of a low-level probe that found several things.
const ambiguous = 8

// nothingFound is blkid's exit code where no device fits (blkid(8)).
const nothingFound = 2

func run(ctx context.Context, args ...string) ([]Device, error) {
	program, err := find()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, program, append([]string{"-c", "/dev/null", "-o", "export"}, args...)...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == nothingFound && len(out) == 0:
		return nil, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("blkid: %w", context.Cause(ctx))
	case err != nil:
		return nil, fmt.Errorf("blkid: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	devices, err := parse(string(out))
	if err != nil {
		return nil, fmt.Errorf("blkid: %w", err)
	}
	return devices, nil
}

// find looks where the program is although the PATH of a cron job has no sbin.
func find() (string, error) {
	for _, name := range []string{"blkid", "/usr/sbin/blkid", "/sbin/blkid"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrMissing
}

// parse reads blocks of lines KEY=VALUE, one block a device, that begin with DEVNAME.
func parse(out string) ([]Device, error) {
	var all []Device
	number := 0
	for line := range strings.Lines(out) {
		number++
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			continue
		}
		key, quoted, ok := strings.Cut(line, "=")
		if !ok {
			return nil, fmt.Errorf("output line %d: %q is not KEY=VALUE", number, line)
		}
		value, err := unquote(quoted)
		if err != nil {
			return nil, fmt.Errorf("output line %d: %w", number, err)
		}
		if key == "DEVNAME" {
			all = append(all, Device{Path: value})
			continue
		}
		if len(all) == 0 {
			return nil, fmt.Errorf("output line %d: %q comes before DEVNAME", number, line)
		}
		all[len(all)-1].set(key, value)
	}
	return all, nil
}

func (d *Device) set(key, value string) {
	switch key {
	case "TYPE":
		d.Type = value
	case "UUID":
		d.UUID = value
	case "UUID_SUB":
		d.SubUUID = value
	case "LABEL":
		d.Label = value
	case "LOGUUID":
		d.LogUUID = value
	case "EXT_JOURNAL":
		d.Journal = value
	case "USAGE":
		d.Usage = value
	case "PTTYPE":
		d.Table = value
	case "PTUUID":
		d.TableUUID = value
	case "PARTUUID":
		d.PartUUID = value
	case "PARTLABEL":
		d.PartLabel = value
	}
}

// unquote undoes the backslashes before what a shell would take for its own.
func unquote(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' {
			if i++; i == len(s) {
				return "", fmt.Errorf("%q ends in a backslash", s)
			}
		}
		b.WriteByte(s[i])
	}
	return b.String(), nil
}
