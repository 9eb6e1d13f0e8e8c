package restore

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/format/gpt"
	"tidemark/linux/mounts"
	"tidemark/transfer/transaction"
	"tidemark/words"
)

// finish does what is to be done beside the content, says that the restore has ended, and
// tells what is left to the user.
func (r *restoration) finish(ctx context.Context) error {
	found, err := mounts.Probe(r.to.Disk, r.to.Disk.Size())
	if err == nil && r.to.Device && !r.to.ID.IsPartition() {
		err = r.finishDisk(found)
	}
	if err == nil {
		err = r.store.End()
	}
	if err == nil {
		err = r.leave(ctx)
	}
	if err != nil {
		return fmt.Errorf("target: %s: %w", r.rep.Target, err)
	}
	r.tellLeft(found)
	r.tellGrowth(found)
	r.tellTwins(ctx)
	return nil
}

// finishDisk makes the partition table one of the disk that it is on now.
func (r *restoration) finishDisk(found []mounts.Signature) error {
	if !slices.ContainsFunc(found, func(s mounts.Signature) bool { return s.Kind == mounts.KindTable }) {
		return nil
	}
	code := make([]byte, bootCode)
	if _, err := r.to.Disk.ReadAt(code, 0); err != nil {
		return err
	}
	boots := !block.IsZero(code)
	table, err := gpt.Read(r.to.Disk)
	switch {
	case errors.Is(err, gpt.ErrNone):
		if slices.ContainsFunc(found, func(s mounts.Signature) bool { return s.Name == "gpt" }) {
			r.o.note("%s: the first copy of its partition table cannot be read, and was left as it is (%v): sgdisk --verify %s", r.rep.Target, err, r.rep.Target)
		}
	case err != nil:
		return err
	case table.SectorSize != r.to.Disk.SectorSize():
		r.o.note("%s: it is the copy of a disk with sectors of %d bytes, and this one has %d: its partitions are not found here", r.rep.Target, table.SectorSize, r.to.Disk.SectorSize())
		return nil
	default:
		boots = boots || slices.ContainsFunc(table.Partitions, func(p gpt.Partition) bool { return p.Type == gpt.TypeEFI || p.Type == gpt.TypeBIOSBoot })
		if err := r.finishGPT(table); err != nil {
			return err
		}
	}
	if boots && !r.origin {
		r.o.note("%s: it has what a machine boots from: %s", r.rep.Target, bootHint)
	}
	// The kernel has the old partitions, or none.
	if err := unix.IoctlSetInt(int(r.to.Disk.File().Fd()), unix.BLKRRPART, 0); err != nil {
		r.o.note("%s: the kernel did not read its partition table again (%v): partx --update %s", r.rep.Target, err, r.rep.Target)
	}
	return nil
}

func (r *restoration) finishGPT(table *gpt.Table) error {
	disk, dst := r.to.Disk, r.rep.Target
	if table.Size() >= disk.Size() {
		return nil
	}
	err := table.Move(transaction.Disk{Device: disk}, disk.Size())
	switch {
	case errors.Is(err, gpt.ErrUnusual):
		r.o.note("%s: the second copy of the partition table does not lie at the end of this larger disk (%v): sgdisk --move-second-header %s", dst, err, dst)
	case err != nil:
		return err
	default:
		r.rep.Moved = true
		r.o.note("%s: the second copy of the partition table was moved to the end of this larger disk", dst)
	}
	return nil
}

// bootCode is how many bytes of a disk's first sector are for a boot loader.
const bootCode = 440

// bootHint is what may be left to do for a disk to boot.
const bootHint = `it boots where the firmware looks for it; if it does not, see "To boot from it" in the manual's page "Getting a disk back" (efibootmgr, grub-install)`

// tellLeft tells of signatures behind the copy: md and some RAID controllers have theirs at
// the end of a disk, and are asked before any filesystem.
func (r *restoration) tellLeft(found []mounts.Signature) {
	for _, s := range found {
		if s.Off >= r.rep.Size {
			r.o.note("%s: behind the copy it still has the signature of a %s from before, and will be taken for one: wipefs --all --types %s %s",
				r.rep.Target, s, s.Name, r.rep.Target)
		}
	}
}

// tellGrowth tells how what is smaller than its disk becomes larger.
func (r *restoration) tellGrowth(found []mounts.Signature) {
	dst, room := r.rep.Target, r.to.Disk.Size()-r.rep.Size
	if !r.to.Device || room == 0 || len(found) == 0 {
		return
	}
	how := ""
	for _, s := range found {
		switch {
		case s.Kind == mounts.KindTable && !r.to.ID.IsPartition():
			how = fmt.Sprintf("growpart %s NUMBER makes its last partition larger; then resize2fs PARTITION, or xfs_growfs or btrfs filesystem resize max, with the mount point, the filesystem", dst)
		case s.Name == "ext":
			how = "resize2fs " + dst
		case s.Name == "xfs":
			how = "mount it, and xfs_growfs MOUNTPOINT"
		case s.Name == "btrfs":
			how = "mount it, and btrfs filesystem resize max MOUNTPOINT"
		}
		if how != "" {
			r.o.note("%s: it is %s larger than the copy; to use that: %s", dst, words.Size(room), how)
			return
		}
	}
}
