package main

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"syscall"

	"tidemark/format/datto"
	"tidemark/snapshot"
	"tidemark/track"
)

// dattoVersion is that of the driver whose answer infoAll has the form of.
const dattoVersion = "0.12.1"

// dattoDevice is what the driver tells of a device, in its order.
type dattoDevice struct {
	Minor       int        `json:"minor"`
	COWFile     string     `json:"cow_file"`
	BlockDevice string     `json:"block_device"`
	MaxCache    uint64     `json:"max_cache"`
	Fallocate   int64      `json:"fallocate"`
	COWSize     int64      `json:"cow_size_current"`
	Sequence    uint64     `json:"seq_id"`
	UUID        datto.UUID `json:"uuid"`
	Version     int        `json:"version"`
	Changed     int64      `json:"nr_changed_blocks"`
	Error       int        `json:"error,omitempty"`
	State       int        `json:"state"`
}

// dattoInfo is /proc/datto-info.
type dattoInfo struct {
	Version string        `json:"version"`
	Devices []dattoDevice `json:"devices"`
}

// info prints what the driver would tell of one device, in the form of its answer.
func (d *dbdctl) info(ctx context.Context, _ []string, minor int) error {
	s, err := d.find(ctx, minor)
	if err != nil {
		return err
	}
	one, err := deviceInfo(ctx, s)
	if err != nil {
		return err
	}
	return printJSON(d.out, dattoInfo{dattoVersion, []dattoDevice{one}})
}

// infoAll prints what the driver would tell of all devices.
func (d *dbdctl) infoAll(ctx context.Context) error {
	all := dattoInfo{dattoVersion, []dattoDevice{}}
	for minor := range dattoMinors {
		s, up, err := d.record(ctx, minor)
		if errors.Is(err, errForeign) || err == nil && !up {
			continue // none of setup-snapshot
		}
		if err != nil {
			return err
		}
		one, err := deviceInfo(ctx, s)
		if err != nil {
			return err
		}
		all.Devices = append(all.Devices, one)
	}
	return printJSON(d.out, all)
}

func deviceInfo(ctx context.Context, s *snapshot.Snapshot) (dattoDevice, error) {
	v := s.Volumes[0]
	known, err := dattoOf(s, v)
	if err != nil {
		return dattoDevice{}, err
	}
	minor, err := strconv.Atoi(strings.TrimPrefix(s.Link, "/dev/datto"))
	if err != nil {
		return dattoDevice{}, err
	}
	d := dattoDevice{
		Minor: minor, COWFile: "/" + v.Store.Below, BlockDevice: s.Labels[labelDevice],
		Sequence: v.Chain.Sequence, UUID: v.Chain.UUID, Version: 1, Error: known.Error, State: known.State,
	}
	if !s.Incremental {
		d.Fallocate, d.COWSize = v.Store.Size, v.Store.Size
	}
	if s.Incremental && known.Error != 0 {
		return d, nil // the device may not be there
	}
	set, err := s.Changes(ctx, v)
	if errors.Is(err, track.ErrMarkLost) {
		return d, nil // error says so
	}
	d.Changed = set.Align(datto.BlockSize, v.Size).Bytes() / datto.BlockSize
	return d, err
}

// dattoOf is what the driver would tell of a volume, as far as a list is held against it.
func dattoOf(s *snapshot.Snapshot, v *snapshot.Volume) (datto.DeviceInfo, error) {
	st, err := s.Status()
	if err != nil {
		return datto.DeviceInfo{}, err
	}
	d := datto.DeviceInfo{Sequence: v.Chain.Sequence, UUID: v.Chain.UUID.String(), State: datto.StateSnapshot}
	if s.Incremental {
		d.State = datto.StateIncremental
	}
	switch {
	case st.Lost != "" && s.Incremental:
		d.Error = -int(syscall.EINVAL)
	case st.Lost != "":
		d.Error = -int(syscall.EFBIG) // the driver's of a COW file that is full
	}
	return d, nil
}
