package dmera

import (
	"context"
	"errors"
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
	bad := func() (Status, error) { return Status{}, fmt.Errorf("status %q cannot be understood", line) }
	words := strings.Fields(line)
	if len(words) == 1 && words[0] == "Error" {
		return Status{}, fmt.Errorf("status %q: %w", line, ErrFailed)
	}
	if len(words) < 4 {
		return bad()
	}
	used, total, ok := strings.Cut(words[1], "/")
	sectors, err1 := strconv.ParseUint(words[0], 10, 16)
	u, err2 := strconv.ParseUint(used, 10, 64)
	n, err3 := strconv.ParseUint(total, 10, 64)
	e, err4 := strconv.ParseUint(words[2], 10, 32)
	held, err5 := uint64(0), error(nil)
	if words[3] != "-" {
		held, err5 = strconv.ParseUint(words[3], 10, 64)
	}
	if !ok || errors.Join(err1, err2, err3, err4, err5) != nil {
		return bad()
	}
	return Status{
		Era: era.Era(e), MetadataBlockSize: int64(sectors) * sectorSize,
		UsedMetadataBlocks: u, TotalMetadataBlocks: n, HeldSnapshot: era.Addr(held),
	}, nil
}
