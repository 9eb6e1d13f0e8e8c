package era

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"tidemark/format/pdata"
)

// TestHexDumpIsTheKernels compares the annotated dump with the image it is of:
// each line is bytes, #, the offset in the block, a remark.
func TestHexDumpIsTheKernels(t *testing.T) {
	text, err := os.ReadFile("testdata/fresh.hex")
	if err != nil {
		t.Fatal(err)
	}
	image := theCaseNamed(t, "c08-fresh.fresh-live").image
	block, lines := -1, 0
	for line := range strings.Lines(string(text)) {
		digits, remark, _ := strings.Cut(line, "#")
		switch {
		case strings.Contains(remark, "The superblock"):
			block = 0
		case strings.Contains(remark, "block 8: a leaf"):
			block = 8
		}
		want, err := hex.DecodeString(strings.Join(strings.Fields(digits), ""))
		if err != nil || len(want) == 0 {
			continue
		}
		at, err := strconv.Atoi(strings.Fields(remark)[0])
		if err != nil {
			t.Fatal(err)
		}
		if got := image[block*BlockSize+at:][:len(want)]; !bytes.Equal(got, want) {
			t.Errorf("block %d offset %d: % x, the dump says % x", block, at, got, want)
		}
		lines++
	}
	if lines != 30 {
		t.Errorf("%d lines compared", lines)
	}
}

func TestFormatConstants(t *testing.T) {
	for _, x := range [][2]int{
		{erasPerBlock, 1018},
		{wordsPerBlock, 509},
		{bitsPerBlock, 32 * 1018},
		{pdata.MaxEntries(8), 252},
		{pdata.MaxEntries(12), 201},
		{pdata.MaxEntries(4), 336},
		{pdata.BitmapEntries, 16320},
		{MaxMetadataBlocks, 4161600},
	} {
		if x[0] != x[1] {
			t.Errorf("%d, want %d", x[0], x[1])
		}
	}
}

func TestNewerIsNotDamaged(t *testing.T) {
	c := theCaseNamed(t, "c08-fresh.fresh-live")
	for name, x := range map[string][2]int{"version 2": {40, 2}, "flag 2": {4, 2}} {
		image := resealed(bytes.Clone(c.image), pdata.EraSuper, 0, x[0], uint32(x[1]))
		if _, err := Open(bytes.NewReader(image), int64(len(image))); !errors.Is(err, ErrNewer) {
			t.Errorf("%s: %v, want ErrNewer", name, err)
		}
		if _, err := Check(bytes.NewReader(image), int64(len(image)), func(*Fault) {}); !errors.Is(err, ErrNewer) {
			t.Errorf("%s: check: %v, want ErrNewer", name, err)
		}
	}
	image := resealed(bytes.Clone(c.image), pdata.EraSuper, 0, 4, flagClean)
	openBytes(t, image)
}
