package dmera

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"tidemark/format/era"
	"tidemark/linux/dm"
	"tidemark/linux/sysfs"
)

// Status is what the kernel says of an era device.
type Status struct {
	// Era is the current one. It grows by itself only at an activation.
	Era era.Era `json:"era"`
	// MetadataBlockSize is in bytes.
	MetadataBlockSize int64 `json:"metadata_block_size"`
	// UsedMetadataBlocks and TotalMetadataBlocks count metadata blocks. Blocks that
	// the last commit freed count as free.
	UsedMetadataBlocks  uint64 `json:"used_metadata_blocks"`
	TotalMetadataBlocks uint64 `json:"total_metadata_blocks"`
	// HeldSnapshot is the block of the held metadata snapshot, 0 when there is none.
	HeldSnapshot era.Addr `json:"held_snapshot"`
	// DiscardsDisabled says that the device takes no discards now.
	DiscardsDisabled bool `json:"discards_disabled"`
	// Discards counts the discards that the device took since its activation. After a
	// single one, a changed block may be in no era. It stays 0 while the device's
	// statistics (queue/iostats) are switched off.
	Discards uint64 `json:"discards"`
}

// Status asks the kernel, which commits the metadata first. The error wraps ErrFailed
// when the kernel cannot commit, and ErrSuspended for a suspended device.
func (d *Device) Status(ctx context.Context) (Status, error) {
	if err := d.answering(ctx); err != nil {
		return Status{}, err
	}
	targets, _, err := d.ctl.Status(d.Name(), dm.StatusOptions{})
	if err != nil {
		return Status{}, fmt.Errorf("dmera: %w", err)
	}
	if len(targets) != 1 || targets[0].Type != targetType {
		return Status{}, fmt.Errorf("dmera: %s: %w: its table has %s", d.Name(), ErrNotEra, kinds(targets))
	}
	s, err := parseStatus(targets[0].Params)
	if err != nil {
		return Status{}, fmt.Errorf("dmera: %s: %w", d.Name(), err)
	}
	most, err := sysfs.Uint(discardLimit(d.info.Dev()))
	if err != nil {
		return Status{}, fmt.Errorf("dmera: %s: %w", d.Name(), err)
	}
	s.DiscardsDisabled = most == 0
	if s.Discards, err = discards(d.info.Dev()); err != nil {
		return Status{}, fmt.Errorf("dmera: %s: %w", d.Name(), err)
	}
	return s, nil
}

// parseStatus reads "BLOCKSIZE USED/TOTAL ERA HELD", block size in sectors, HELD a
// block or "-".
func parseStatus(line string) (Status, error) {
	if strings.TrimSpace(line) == "Error" {
		return Status{}, fmt.Errorf("status %q: %w", line, ErrFailed)
	}
	var s Status
	var sectors uint16
	var held string
	_, err := fmt.Sscanf(line, "%d %d/%d %d %s", &sectors, &s.UsedMetadataBlocks, &s.TotalMetadataBlocks, &s.Era, &held)
	if err == nil && held != "-" {
		var at uint64
		at, err = strconv.ParseUint(held, 10, 64)
		s.HeldSnapshot = era.Addr(at)
	}
	if err != nil {
		return Status{}, fmt.Errorf("status %q cannot be understood: %w", line, err)
	}
	s.MetadataBlockSize = int64(sectors) * sectorSize
	return s, nil
}
