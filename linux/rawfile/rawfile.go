// Package rawfile keeps a few bytes in a file whose blocks are read and written past its filesystem,
// so that they can be changed while that is mounted read-only.
//
// For most uses, [Create] the file once, while the filesystem is writable; then [Open] it, and
// [File.Read], [File.Write] or [File.Clear] what it holds.
//
// The file is immutable: ext4 and XFS move none of its blocks, and write none of them. Where they
// are is asked anew by every Open, and nothing is written unless each block, read from the disk, says
// that it is that block of one file of this package. Other filesystems, and files in which blocks of
// 4096 bytes are not whole on the disk, are refused.
//
// # Format
//
// All blocks are 4096 bytes, little-endian:
//
//	0  [8]  "tidemraw"
//	8  [16] random, the same in all blocks of a file
//	24 u64  number of the block
//	32 u64  sequence: how often the file was written
//	40 u64  of block 0: bytes of the content, 0 for none
//	48 [32] of block 0: SHA-256 of the sequence and the content
//	80      of the other blocks: 4016 bytes of the content
//
// Block 0 is written last. After a power cut the file holds what it held, or the new content, or
// is damaged, which Read tells.
//
// A File is for one goroutine at a time.
package rawfile

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/atomicfile"
	"tidemark/linux/fiemap"
	"tidemark/linux/sysfs"
	"tidemark/witness"
)

// Size is the size of a file in bytes, and Room what it can hold.
const (
	Size = 4 << 20
	Room = (blocks - 1) * (blockSize - headSize)
)

const (
	magic     = "tidemraw"
	blockSize = 4096
	blocks    = Size / blockSize
	idOff     = 8
	numberOff = 24
	seqOff    = 32
	lenOff    = 40
	sumOff    = 48
	headSize  = 80
)

var (
	// ErrUnfit says that the blocks of a file cannot be relied on; nothing was written.
	ErrUnfit = errors.New("it cannot be written past its filesystem")
	// ErrDamaged says that the content is not what was written.
	ErrDamaged = errors.New("damaged")
	// ErrNoRoom says that a content is larger than Room.
	ErrNoRoom = errors.New("it does not fit")
)

// Create makes a file without content, in place of one of that name. It is there after a power cut
// when Create returns.
func Create(path string) error {
	if err := Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := atomicfile.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("rawfile: %w", err)
	}
	err := place(path)
	if errors.Is(err, errBeginning) {
		held := path + ".held" // has the beginning while another file is made
		if err = os.Rename(path, held); err == nil {
			err = errors.Join(place(path), os.Remove(held))
		}
	}
	if err != nil {
		return fmt.Errorf("rawfile: %w", errors.Join(err, Remove(path)))
	}
	return nil
}

// errBeginning says that a file lies at the beginning of its filesystem, which tells who has mounted
// that (package witness): it must not change.
var errBeginning = errors.New("it lies at the beginning of the filesystem")

// place makes a file and has it stay where it lies, unless that is the beginning.
func place(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err = fill(f); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = beginning(f)
	}
	if err == nil {
		err = fiemap.SetImmutable(f, true)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}

func beginning(f *os.File) error {
	pieces, err := fiemap.Of(f)
	for _, e := range pieces {
		if e.Physical < witness.HeadSize {
			return errBeginning
		}
	}
	return err
}

// fill places the blocks of a new file and writes each: one that is only allocated reads as zeros
// through the file, and holds anything on the disk.
func fill(f *os.File) error {
	if err := unix.Fallocate(int(f.Fd()), 0, 0, Size); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	all := make([]byte, Size)
	for i := range blocks {
		head(all[i*blockSize:], id, i, 0)
	}
	_, err := f.WriteAt(all, 0)
	return err
}

func head(b []byte, id [16]byte, number int, seq uint64) {
	copy(b, magic)
	copy(b[idOff:], id[:])
	binary.LittleEndian.PutUint64(b[numberOff:], uint64(number))
	binary.LittleEndian.PutUint64(b[seqOff:], seq)
}

// Remove removes a file. The error wraps fs.ErrNotExist when there is none.
func Remove(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("rawfile: %w", err)
	}
	err = fiemap.SetImmutable(f, false)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("rawfile: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("rawfile: %w", err)
	}
	return nil
}

// File is an open file. Close it after use.
type File struct {
	path   string
	dev    *block.Device // the disk
	pieces []fiemap.Extent
	id     [16]byte
	all    []byte // as on the disk, aligned
}

// Open finds the blocks of a file on the disk of its filesystem, and reads all of them. The error wraps
// fs.ErrNotExist when there is no file, ErrUnfit when its blocks cannot be relied on.
func Open(path string) (*File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("rawfile: %w", err)
	}
	defer file.Close()
	f := &File{path: path, all: block.AlignedBuffer(Size)}
	disk, err := f.find(file)
	if err != nil {
		return nil, fmt.Errorf("rawfile: %s: %w: %w", path, ErrUnfit, err)
	}
	f.dev, err = block.Open(sysfs.DevPath(disk), block.Options{Write: true, Direct: true})
	if err != nil {
		return nil, fmt.Errorf("rawfile: %s: %w", path, err)
	}
	if err := f.verify(); err != nil {
		return nil, errors.Join(fmt.Errorf("rawfile: %s: %w", path, err), f.dev.Close())
	}
	return f, nil
}

// find fills in where the blocks are, and returns the disk.
func (f *File) find(file *os.File) (disk string, err error) {
	var at unix.Statfs_t
	if err := unix.Fstatfs(int(file.Fd()), &at); err != nil {
		return "", err
	}
	if at.Type != unix.EXT4_SUPER_MAGIC && at.Type != unix.XFS_SUPER_MAGIC {
		return "", fmt.Errorf("its filesystem (type %#x) is neither ext4 nor XFS", at.Type)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return "", err
	}
	is, err := fiemap.Immutable(file)
	if err != nil {
		return "", err
	}
	if !is || st.Size != Size {
		return "", fmt.Errorf("it has %d bytes and is immutable: %v; want %d", st.Size, is, Size)
	}
	id, err := block.IdentifyDev(sysfs.DevOf(st.Dev))
	if err != nil {
		return "", err
	}
	if err := beginning(file); err != nil {
		return "", err
	}
	if f.pieces, err = fiemap.Of(file); err != nil {
		return "", err
	}
	next := int64(0)
	for i, e := range f.pieces {
		if e.Logical != next || e.Len%blockSize != 0 || e.Len > Size-next || e.Physical > id.Size-e.Len {
			return "", fmt.Errorf("%d bytes from byte %d on lie at byte %d of %s", e.Len, e.Logical, e.Physical, id.Disk)
		}
		next += e.Len
		f.pieces[i].Physical += id.Start
	}
	if next != Size {
		return "", fmt.Errorf("only %d of %d bytes have a place on the disk", next, Size)
	}
	return id.Disk, nil
}

// verify reads all blocks, and fails unless they are those of one file.
func (f *File) verify() error {
	for _, e := range f.pieces {
		if _, err := f.dev.ReadAt(f.all[e.Logical:e.Logical+e.Len], e.Physical); err != nil {
			return fmt.Errorf("read %d bytes at byte %d of the disk: %w", e.Len, e.Physical, err)
		}
	}
	copy(f.id[:], f.all[idOff:])
	for i := range blocks {
		b := f.all[i*blockSize:]
		if string(b[:idOff]) != magic || !bytes.Equal(b[idOff:numberOff], f.id[:]) || binary.LittleEndian.Uint64(b[numberOff:]) != uint64(i) {
			return fmt.Errorf("%w: the disk holds something else in the place of its block %d", ErrUnfit, i)
		}
	}
	return nil
}

// Disk returns the kernel's name of the disk that the file lies on.
func (f *File) Disk() string { return f.dev.Identity().Disk }

// Places returns where the file lies on its disk, in bytes.
func (f *File) Places() extent.Set {
	var all []extent.Extent
	for _, e := range f.pieces {
		all = append(all, extent.Extent{Off: e.Physical, Len: e.Len})
	}
	return extent.NewSet(all...)
}

// Read returns the content as it was when the file was opened; none is nil. The error wraps ErrDamaged.
func (f *File) Read() ([]byte, error) {
	size := binary.LittleEndian.Uint64(f.all[lenOff:])
	if size == 0 {
		return nil, nil
	}
	if size > Room {
		return nil, fmt.Errorf("rawfile: %s: %w: a content of %d bytes", f.path, ErrDamaged, size)
	}
	content := make([]byte, 0, size)
	for i := 1; len(content) < int(size); i++ {
		b := f.all[i*blockSize:][headSize:blockSize]
		content = append(content, b[:min(len(b), int(size)-len(content))]...)
	}
	if sum := f.sum(content); !bytes.Equal(sum[:], f.all[sumOff:headSize]) {
		return nil, fmt.Errorf("rawfile: %s: %w: checksum %x, want %x", f.path, ErrDamaged, sum, f.all[sumOff:headSize])
	}
	return content, nil
}

func (f *File) sum(content []byte) [sha256.Size]byte {
	return sha256.Sum256(append(bytes.Clone(f.all[seqOff:lenOff]), content...))
}

// Clear takes the content away. It is gone after a power cut when Clear returns.
func (f *File) Clear() error { return f.Write(nil) }

// Write replaces the content. It is there after a power cut when Write returns. The error wraps
// ErrNoRoom.
func (f *File) Write(content []byte) error {
	if len(content) > Room {
		return fmt.Errorf("rawfile: %s: %d bytes in %d: %w", f.path, len(content), Room, ErrNoRoom)
	}
	seq := binary.LittleEndian.Uint64(f.all[seqOff:]) + 1
	rest, used := content, 1
	for ; len(rest) > 0; used++ {
		b := f.all[used*blockSize:][:blockSize]
		clear(b)
		head(b, f.id, used, seq)
		rest = rest[copy(b[headSize:], rest):]
	}
	if err := f.write(blockSize, int64(used)*blockSize); err != nil {
		return err
	}
	first := f.all[:blockSize]
	clear(first)
	head(first, f.id, 0, seq)
	binary.LittleEndian.PutUint64(first[lenOff:], uint64(len(content)))
	sum := f.sum(content)
	copy(first[sumOff:], sum[:])
	return f.write(0, blockSize)
}

// write writes some bytes of the file to the disk, and has the disk keep them.
func (f *File) write(from, until int64) error {
	for _, e := range f.pieces {
		a, b := max(from, e.Logical), min(until, e.Logical+e.Len)
		if a >= b {
			continue
		}
		if _, err := f.dev.WriteAt(f.all[a:b], e.Physical+a-e.Logical); err != nil {
			return fmt.Errorf("rawfile: %s: write %d bytes at byte %d of the disk: %w", f.path, b-a, e.Physical+a-e.Logical, err)
		}
	}
	if err := f.dev.Sync(); err != nil {
		return fmt.Errorf("rawfile: %s: %w", f.path, err)
	}
	return nil
}

// Close lets go of the disk.
func (f *File) Close() error { return f.dev.Close() }
