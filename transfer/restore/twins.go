package restore

import (
	"context"
	"fmt"
	"slices"

	"tidemark/linux/blkid"
)

// tellTwins tells of other devices of this machine that answer to the same UUID as the
// target or its partitions, unless it is the original. Nothing is changed: what is right depends on which of them
// stays in the machine.
func (r *restoration) tellTwins(ctx context.Context) {
	if !r.to.Device || r.origin {
		return
	}
	ours, err := overlapping(r.to.ID)
	if err != nil {
		ours = []string{r.to.Path}
	}
	all, err := blkid.List(ctx)
	if err != nil {
		r.o.note("%s: whether another device has its UUIDs cannot be told: %v", r.rep.Target, err)
		return
	}
	table := r.to.ID.IsPartition() // of a disk: told once
	for _, d := range all {
		if !slices.Contains(ours, d.Path) {
			continue
		}
		for _, other := range all {
			switch {
			case slices.Contains(ours, other.Path):
			case d.UUID != "" && d.UUID == other.UUID:
				r.tellTwin(d.Path, other.Path, newUUID(d))
			case !table && (d.TableUUID != "" && d.TableUUID == other.TableUUID || d.PartUUID != "" && d.PartUUID == other.PartUUID):
				table = true
				r.tellTwin(d.Path, other.Path, "sgdisk --randomize-guids "+r.rep.Target)
			}
		}
	}
}

func (r *restoration) tellTwin(ours, other, change string) {
	r.o.note("%s: %s has the same UUID, and the one may be taken for the other: keep one of them out of this machine, or change it: %s", ours, other, change)
}

// newUUID is the command that gives a filesystem another UUID.
func newUUID(d blkid.Device) string {
	switch d.Type {
	case "ext2", "ext3", "ext4":
		return fmt.Sprintf("e2fsck -f %[1]s && tune2fs -U random %[1]s", d.Path)
	case "xfs":
		return "xfs_admin -U generate " + d.Path
	case "btrfs":
		return "btrfstune -u " + d.Path
	case "swap":
		return fmt.Sprintf("swaplabel -U $(uuidgen) %s", d.Path)
	}
	return "change that of one of them"
}
