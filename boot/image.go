package boot

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Errors of initramfs images.
var (
	errNotImage   = errors.New("not an initramfs image")
	errCompressed = errors.New("cannot be unpacked here")
)

// cpio's newc format, per Documentation/driver-api/early-userspace/buffer-format.rst.
const (
	cpioHeader  = 110 // bytes
	cpioTrailer = "TRAILER!!!"
	cpioNameMax = 4096
	cpioKeepMax = 1 << 20 // of a file whose content is wanted
)

// image is what is known of the files in an initramfs.
type image struct {
	sums    map[string]string // path without a leading slash → "sha256:…", of regular files
	table   []byte            // the content of TabPath
	builtin bool              // the kernel has dm-era without a module
}

// builtinList is where kmod finds what needs no module.
const builtinList = "modules.builtin"

// readImage reads an initramfs: archives one after the other, the last of which is
// compressed as a rule.
func readImage(name string) (image, error) {
	f, err := os.Open(name)
	if err != nil {
		return image{}, err
	}
	defer f.Close()
	img := image{sums: map[string]string{}}
	err = img.read(bufio.NewReaderSize(f, 1<<20))
	return img, err
}

func (img *image) read(r *bufio.Reader) error {
	for archives := 0; ; archives++ {
		head, err := skipZeros(r)
		switch {
		case errors.Is(err, io.EOF) && archives > 0:
			return nil
		case err != nil:
			return fmt.Errorf("%w: %w", errNotImage, err)
		}
		if bytes.HasPrefix(head, []byte("07070")) {
			if err := img.archive(r); err != nil {
				return err
			}
			continue
		}
		unpacked, closeIt, err := decompress(r, head)
		if err != nil {
			return err
		}
		return errors.Join(img.archives(unpacked), closeIt())
	}
}

// archives reads what was compressed: one archive after the other.
func (img *image) archives(r io.Reader) error {
	in := bufio.NewReaderSize(r, 1<<20)
	for {
		switch _, err := skipZeros(in); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("%w: %w", errNotImage, err)
		}
		if err := img.archive(in); err != nil {
			return err
		}
	}
}

// skipZeros skips the zeros between archives and shows what follows.
func skipZeros(r *bufio.Reader) ([]byte, error) {
	for {
		head, err := r.Peek(6)
		if len(head) == 0 {
			return nil, err
		}
		if head[0] != 0 {
			return head, nil
		}
		if _, err := r.Discard(1); err != nil {
			return nil, err
		}
	}
}

// archive reads one archive to its trailer.
func (img *image) archive(r *bufio.Reader) error {
	for {
		head := make([]byte, cpioHeader)
		if _, err := io.ReadFull(r, head); err != nil {
			return fmt.Errorf("%w: %w", errNotImage, err)
		}
		if magic := string(head[:6]); magic != "070701" && magic != "070702" {
			return fmt.Errorf("%w: no archive member where one must be", errNotImage)
		}
		mode, size, nameSize := hexField(head, 1), hexField(head, 6), hexField(head, 11)
		if mode < 0 || size < 0 || nameSize < 1 || nameSize > cpioNameMax {
			return fmt.Errorf("%w: bad archive member", errNotImage)
		}
		name := make([]byte, nameSize+pad(cpioHeader+nameSize))
		if _, err := io.ReadFull(r, name); err != nil {
			return fmt.Errorf("%w: %w", errNotImage, err)
		}
		text := string(bytes.TrimRight(name, "\x00"))
		if text == cpioTrailer {
			return nil
		}
		if err := img.member(r, text, mode, size); err != nil {
			return fmt.Errorf("%w: %s: %w", errNotImage, text, err)
		}
		if _, err := r.Discard(int(pad(size))); err != nil {
			return fmt.Errorf("%w: %w", errNotImage, err)
		}
	}
}

// member notes one file and leaves r behind its data.
func (img *image) member(r io.Reader, name string, mode, size int64) error {
	const typeMask, regular = 0o170000, 0o100000 // stat(2)
	name = inside(name)
	if mode&typeMask != regular || !interesting(name) {
		_, err := io.CopyN(io.Discard, r, size)
		return err
	}
	sum := sha256.New()
	var kept bytes.Buffer
	to := io.Writer(sum)
	wanted := name == inside(TabPath) || path.Base(name) == builtinList
	if wanted && size <= cpioKeepMax {
		to = io.MultiWriter(sum, &kept)
	}
	if _, err := io.CopyN(to, r, size); err != nil {
		return err
	}
	img.sums[name] = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	switch {
	case name == inside(TabPath):
		img.table = kept.Bytes()
	case path.Base(name) == builtinList:
		img.builtin = bytes.Contains(kept.Bytes(), []byte("/dm-era.ko"))
	}
	return nil
}

// interesting spares the hashing of everything else.
func interesting(name string) bool {
	base := path.Base(name)
	return strings.Contains(base, "tidemark") || name == inside(TabPath) || strings.HasPrefix(base, "dm-era.ko") || base == builtinList ||
		strings.Contains(name, "dracut/hooks/")
}

// hexField is the nth field of 8 hexadecimal digits after the magic; -1 when it is none.
func hexField(head []byte, n int) int64 {
	v, err := strconv.ParseUint(string(head[6+8*n:6+8*n+8]), 16, 32)
	if err != nil {
		return -1
	}
	return int64(v)
}

// pad is how many bytes follow n bytes up to a multiple of four.
func pad(n int64) int64 { return -n & 3 }

// compressions lists the formats that a kernel unpacks; those without a reader of our
// own are unpacked by a program.
var compressions = [...]struct{ magic, program string }{
	{"\x1f\x8b", ""},
	{"\x28\xb5\x2f\xfd", ""},
	{"\xfd7zXZ", "xz"},
	{"\x5d\x00\x00", "lzma"},
	{"BZh", "bzip2"},
	{"\x02\x21\x4c\x18", "lz4"},
	{"\x89LZO", "lzop"},
}

// decompress returns a reader of what r holds, and what ends it.
func decompress(r io.Reader, head []byte) (io.Reader, func() error, error) {
	for i, c := range compressions {
		switch {
		case !bytes.HasPrefix(head, []byte(c.magic)):
			continue
		case i == 0:
			z, err := gzip.NewReader(r)
			if err != nil {
				return nil, nil, fmt.Errorf("%w: %w", errNotImage, err)
			}
			return z, z.Close, nil
		case i == 1:
			z, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(1<<30))
			if err != nil {
				return nil, nil, fmt.Errorf("%w: %w", errNotImage, err)
			}
			return z, func() error { z.Close(); return nil }, nil
		}
		return unpackBy(c.program, r)
	}
	return nil, nil, fmt.Errorf("%w: begins with % x", errNotImage, head)
}

func unpackBy(program string, r io.Reader) (io.Reader, func() error, error) {
	cmd := exec.Command(program, "-dc")
	cmd.Stdin = r
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errCompressed, err)
	}
	return out, func() error {
		out.Close() // what follows the last archive is of no interest
		cmd.Wait()  //nolint:errcheck // a truncated archive has shown already
		return nil
	}, nil
}
