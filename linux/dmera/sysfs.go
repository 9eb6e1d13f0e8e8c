package dmera

import (
	"fmt"
	"os"
	"path/filepath"

	"tidemark/linux/dm"
	"tidemark/linux/sysfs"
)

func discardLimit(d dm.Dev) string { return filepath.Join(d.Dir(), "queue/discard_max_bytes") }

// forbidDiscards makes a device take no discards, until its table is replaced.
func forbidDiscards(d dm.Dev) error {
	most, err := sysfs.Uint(discardLimit(d))
	if err != nil || most == 0 {
		return err
	}
	if err := os.WriteFile(discardLimit(d), []byte("0"), 0); err != nil {
		return fmt.Errorf("switch discards off: %w", err)
	}
	if most, err = sysfs.Uint(discardLimit(d)); err == nil && most != 0 {
		err = fmt.Errorf("switch discards off: the kernel still takes %d bytes", most)
	}
	return err
}

// discards counts the discards that a device has ended; 0 before Linux 4.18.
func discards(d dm.Dev) (uint64, error) {
	stat, err := sysfs.Stat(d.Dir())
	return stat.Discards(), err
}
