package browse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"tidemark/linux/btrfs"
	"tidemark/linux/loop"
	"tidemark/linux/mounts"
)

// kind is how a filesystem is mounted.
type kind struct {
	names   []string // of the kernel's drivers, the best first
	options string
	note    string // what a user should know
}

// kind tells how the filesystem of a volume is mounted.
func (p *picture) kind(v volume) (kind, error) {
	k := kind{names: []string{v.held.Type}}
	switch v.held.Type {
	case "ext3", "ext4":
		// The journal would be replayed to memory at best, and one on another device to that.
		k.options = "noload"
		dirty, err := needsRecovery(p.section(v))
		if err != nil {
			return k, err
		}
		if dirty {
			k.note = "its journal is not replayed (noload): what was being changed when the copy was made may look damaged"
		}
	case "xfs":
		k.options = "norecovery,nouuid"
		k.note = "its log is not replayed (norecovery); of a copy that was made while it was mounted nothing is missing for that"
	case "btrfs":
		k.options = "rescue=nologreplay"
	case "ntfs":
		k.names = []string{"ntfs3", "ntfs"}
	}
	return k, nil
}

func (p *picture) section(v volume) *io.SectionReader {
	return io.NewSectionReader(p.disk, v.Off, v.Len)
}

// needsRecovery reads the feature "recover" of an ext3 or ext4 (fs/ext4/ext4.h).
func needsRecovery(r io.ReaderAt) (bool, error) {
	const (
		superblock = 1024
		incompat   = superblock + 0x60
		recover    = 0x4
	)
	var flags [4]byte
	if _, err := r.ReadAt(flags[:], incompat); err != nil {
		return false, err
	}
	return binary.LittleEndian.Uint32(flags[:])&recover != 0, nil
}

// judge says why a volume cannot be mounted, nil where it may be.
func (p *picture) judge(v volume) error {
	switch v.held.Type {
	case "":
		return errors.New("no filesystem was found")
	case "swap":
		return errors.New("swap has no files")
	case "crypto_LUKS":
		return errors.New("it is encrypted: attach it (losetup -r), open that with cryptsetup open --readonly, and mount what that shows")
	case "LVM2_member", "linux_raid_member", "bcache", "zfs_member", "isw_raid_member", "ddf_raid_member":
		return errors.New("it is a part of a volume or array, whose own copy can be mounted")
	}
	if v.held.Usage != "filesystem" {
		return errors.New("it is no filesystem")
	}
	sb, err := mounts.ReadSuperblock(p.section(v), v.Len)
	if err != nil {
		return err
	}
	switch {
	case sb.ExternalLog, sb.RealTime:
		return errors.New("a part of it lies on another device: attach the copies of both (losetup -r), and mount them by hand with -o ro,norecovery,nouuid,logdev=… or rtdev=…")
	case sb.Devices > 1:
		return fmt.Errorf("a Btrfs of %d devices: %w: on a machine that has not the original, attach the copies of all of them (losetup -r) and mount one with -o ro,rescue=nologreplay; or restore it there", sb.Devices, ErrOriginal)
	case sb.Type == "btrfs":
		return beside(v.held.UUID)
	}
	return nil
}

// beside refuses a Btrfs with a UUID that is mounted, where the kernel would.
func beside(uuid string) error {
	const sys = "/sys/fs/btrfs"
	if _, err := os.Stat(filepath.Join(sys, uuid)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := os.Stat(filepath.Join(sys, "features/temp_fsid")); err == nil {
		return nil
	}
	return fmt.Errorf("a Btrfs with UUID %s is mounted: %w before Linux 6.7: use another machine, or give another copy of the image a UUID of its own (cp --sparse=always, then btrfstune -u)", uuid, ErrOriginal)
}

// forget has the kernel forget what Btrfs it saw on a loop device before, and on those that
// are gone. With Linux 6.18 it would not mount another copy while the original is mounted
// (EEXIST), nor a copy on a loop device that has shown one before (EINVAL).
func forget(also ...string) error {
	paths, err := loop.Detached()
	for _, path := range append(paths, also...) {
		err = errors.Join(err, btrfs.Forget(path))
	}
	return err
}
