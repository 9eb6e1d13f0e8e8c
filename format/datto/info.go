package datto

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// The states of a device that the driver traces.
const (
	StateDormantIncremental = iota
	StateDormantSnapshot
	StateIncremental
	StateSnapshot
	StateUnverifiedIncremental
	StateUnverifiedSnapshot
)

// Info is what the driver tells in /proc/datto-info.
type Info struct {
	Version string       `json:"version"`
	Devices []DeviceInfo `json:"devices"`
}

// DeviceInfo is what it tells of one device.
type DeviceInfo struct {
	Minor       int    `json:"minor"`
	COWFile     string `json:"cow_file"` // below the mount point
	BlockDevice string `json:"block_device"`
	Sequence    uint64 `json:"seq_id"`
	UUID        string `json:"uuid"` // hexadecimal
	Changed     uint64 `json:"nr_changed_blocks"`
	State       int    `json:"state"`
	Error       int    `json:"error"` // negative errno, 0: none
}

// infoLimit bounds what is read: the driver has 255 devices at most, of some hundred bytes.
const infoLimit = 1 << 20

// ParseInfo reads the driver's answer. That of release 0.10.7 lacks commas between members,
// which are taken as being there.
func ParseInfo(r io.Reader) (info Info, err error) {
	b, err := io.ReadAll(io.LimitReader(r, infoLimit+1))
	if err != nil {
		return info, fmt.Errorf("datto: info: %w", err)
	}
	if len(b) > infoLimit {
		return info, errors.New("datto: info: it is larger than the driver's answer can be")
	}
	if json.Unmarshal(b, &info) == nil {
		return info, nil
	}
	info = Info{}
	if err := json.Unmarshal(withCommas(b), &info); err != nil {
		return info, fmt.Errorf("datto: info: %w", err)
	}
	return info, nil
}

// withCommas puts a comma behind each line that has a member and is followed by another.
func withCommas(b []byte) []byte {
	lines := bytes.Split(b, []byte("\n"))
	for i := range len(lines) - 1 {
		line, next := bytes.TrimSpace(lines[i]), bytes.TrimSpace(lines[i+1])
		if len(line) > 0 && !bytes.ContainsAny(line[len(line)-1:], ",{[:") && len(next) > 0 && next[0] == '"' {
			lines[i] = append(slices.Clone(line), ',')
		}
	}
	return bytes.Join(lines, []byte("\n"))
}

// Device returns what is told of the device with that minor.
func (i Info) Device(minor int) (DeviceInfo, error) {
	for _, d := range i.Devices {
		if d.Minor == minor {
			return d, nil
		}
	}
	return DeviceInfo{}, fmt.Errorf("datto: info: the driver has no device with the minor %d", minor)
}

// ErrOther says that a COW file is not the one before a snapshot.
var ErrOther = errors.New("the COW file does not belong to the snapshot")

// Precedes returns nil when a COW file tells what changed from the snapshot before to the
// active snapshot d. The error wraps ErrOther. Of a file from before March 2016, which has
// no UUID, nothing can be told.
func (f *File) Precedes(d DeviceInfo) error {
	switch h := f.header; {
	case d.Error != 0:
		return fmt.Errorf("datto: %w: the driver says that the snapshot has failed (error %d)", ErrOther, d.Error)
	case d.State != StateSnapshot:
		return fmt.Errorf("datto: %w: the driver says that it is in state %d, and an active snapshot is in state %d", ErrOther, d.State, StateSnapshot)
	case h.UUID == UUID{} && h.Sequence == 0:
		return nil
	case h.UUID.String() != d.UUID:
		return fmt.Errorf("datto: %w: its UUID is %s, and the snapshot's %s", ErrOther, h.UUID, d.UUID)
	case h.Sequence != d.Sequence-1:
		return fmt.Errorf("datto: %w: its sequence is %d, which does not immediately go before the snapshot's %d", ErrOther, h.Sequence, d.Sequence)
	}
	return nil
}
