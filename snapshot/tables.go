package snapshot

import (
	"errors"
	"strings"

	"tidemark/linux/dm"
)

// The tables that a volume has.
type tableKind string

const (
	absent  tableKind = "absent"
	plain   tableKind = "plain"   // its own
	kept    tableKind = "kept"    // snapshot-origin, over the device below
	shut    tableKind = "shut"    // it refuses everything, until the rollback begins
	merging tableKind = "merging" // the snapshot is being put back
)

// tableOf tells what table a volume has now.
func (s *Snapshot) tableOf(ctl *dm.Control, v *Volume) (tableKind, error) {
	table, _, err := ctl.Table(v.Name)
	switch {
	case errors.Is(err, dm.ErrNotFound):
		return absent, nil
	case err != nil || len(table) != 1:
		return plain, err
	}
	real, ours, err := own(ctl, v.real())
	if !ours || err != nil {
		return plain, err
	}
	if in, err := v.inserted(ctl, table); in || err != nil {
		return kept, err
	}
	first, _, _ := strings.Cut(strings.TrimSpace(table[0].Params), " ")
	switch {
	case table[0].Type == "error":
		return shut, nil
	case table[0].Type == "snapshot-origin" && first == real.Dev().String():
		return kept, nil
	case table[0].Type == "snapshot-merge" && first == real.Dev().String():
		return merging, nil
	}
	return plain, nil
}
