package apply

import (
	"crypto/sha256"
	"fmt"

	"golang.org/x/sys/unix"

	"tidemark/format/redo"
	"tidemark/transfer/mirror"
)

// named is a target that tells itself from others.
type named interface {
	// Name returns words that no other target has, and that change when this one is
	// written to; "" where there are none.
	Name() (string, error)
}

// digest stands for the target and for when it was last written to. It is zero where
// that cannot be told.
func digest(target mirror.Target) (redo.Digest, error) {
	f, err := target.Fingerprint()
	if err != nil {
		return redo.Digest{}, err
	}
	words := fmt.Sprintf("%+v", f)
	if n, ok := target.(named); ok {
		name, err := n.Name()
		if name == "" || err != nil {
			return redo.Digest{}, err
		}
		words += " " + name
	}
	return sha256.Sum256([]byte(words)), nil
}

// Name implements named. The time of the last change of an image's inode, unlike
// that of its content, cannot be set by who writes to it; a device has a serial
// number that grows whenever a disk appears, which is in its fingerprint.
func (i Image) Name() (string, error) {
	if i.IsDevice() {
		f, err := i.Fingerprint()
		if f.DiskSeq == 0 { // before Linux 5.15
			return "", err
		}
		return "device", err
	}
	var st unix.Statx_t
	err := unix.Statx(int(i.File().Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
	if err != nil {
		return "", fmt.Errorf("statx: %w", err)
	}
	return fmt.Sprint("file ", st.Dev_major, st.Dev_minor, " ", st.Ino, st.Btime, st.Ctime), nil
}
