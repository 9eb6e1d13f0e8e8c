package fiemap

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// FS_IOC_GETFSMAP (include/uapi/linux/fsmap.h): a head with the first and the last record that are asked
// for, and the records.
const (
	fsIocGetFSMap = 0xc0c0583b // _IOWR('X', 59, struct fsmap_head)
	mapHead       = 64         // struct fsmap_head before its keys
	mapRecord     = 64         // struct fsmap
	mapBatch      = 1024       // records that one call asks for
	mapSpecial    = 0x10       // FMR_OF_SPECIAL_OWNER
	mapLast       = 0x20       // FMR_OF_LAST
	mapFree       = 1          // FMR_OWN_FREE
)

// Free returns the bytes of the device of a mounted filesystem that belong to nobody, in ascending order,
// of which f is a folder: Physical and Len. Parts of it on other devices are left out. ext4 and XFS can
// tell.
func Free(f *os.File) ([]Extent, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	major, minor := unix.Major(st.Dev), unix.Minor(st.Dev)
	dev := minor&0xff | major<<8 | minor&^0xff<<12 // new_encode_dev in include/linux/kdev_t.h
	var found []Extent
	buf, le := make([]byte, mapHead+(2+mapBatch)*mapRecord), binary.LittleEndian
	from := make([]byte, mapRecord)
	for {
		clear(buf)
		le.PutUint32(buf[8:], mapBatch)
		copy(buf[mapHead:], from)
		for i := range 32 { // device, flags, physical, owner and offset; the rest has to be zero
			buf[mapHead+mapRecord+i] = 0xff
		}
		if errno := ioctl(f, fsIocGetFSMap, buf); errno != 0 {
			return nil, fmt.Errorf("fsmap: %s: %w", f.Name(), errno)
		}
		n := min(int(le.Uint32(buf[12:])), mapBatch)
		if n == 0 {
			return found, nil
		}
		for i := range n {
			r := buf[mapHead+(2+i)*mapRecord:][:mapRecord]
			flags := le.Uint32(r[4:])
			e := Extent{Physical: int64(le.Uint64(r[8:])), Len: int64(le.Uint64(r[32:]))}
			if le.Uint32(r) == dev && flags&mapSpecial != 0 && le.Uint64(r[16:]) == mapFree && e.Physical >= 0 && e.Len > 0 {
				found = append(found, e)
			}
			if flags&mapLast != 0 {
				return found, nil
			}
			copy(from, r)
		}
	}
}
