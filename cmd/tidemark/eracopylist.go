package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"

	"tidemark/extent"
	"tidemark/format/era"
	"tidemark/linux/dm"
	"tidemark/linux/dmera"
)

// blockList is a list of blocks, in any order.
type blockList struct {
	ranges  []era.Range
	sectors uint32 // of a block; 0 when the list does not tell
}

// listJSON is what is needed of the JSON of "era invalidate".
type listJSON struct {
	BlockSize *uint32         `json:"block_size"` // sectors
	Blocks    *[][2]era.Block `json:"blocks"`
}

// readList reads a list of blocks, XML or JSON, to its end.
func readList(r io.Reader) (blockList, error) {
	in := bufio.NewReader(r)
	for {
		c, err := in.Peek(1)
		if err != nil {
			break
		}
		if c[0] == '{' {
			return decodeListJSON(in)
		}
		if c[0] != ' ' && c[0] != '\n' && c[0] != '\t' && c[0] != '\r' {
			break
		}
		_, _ = in.Discard(1) // it has just been seen
	}
	var list blockList
	err := era.ParseRangesXML(in, func(r era.Range) error {
		if n := len(list.ranges); n > 0 && list.ranges[n-1].End == r.Begin {
			list.ranges[n-1].End = r.End
		} else {
			list.ranges = append(list.ranges, r)
		}
		return nil
	})
	if errors.Is(err, io.EOF) {
		err = hinted{err, "whoever should have written the list has failed; nothing changed is an empty <blocks>"}
	} else if errors.Is(err, era.ErrXML) {
		err = hinted{err, "make the list anew: nothing was copied"}
	}
	return list, err
}

// blockSize returns the size of a block in bytes, from what knows it best.
func (c *eraCopy) blockSize(ctx context.Context, list blockList, path string, g *globals) (int64, error) {
	told := int64(c.block)
	if told%era.SectorSize != 0 {
		return 0, usagef("--block-size: %d bytes is no multiple of %d", told, era.SectorSize)
	}
	known := int64(list.sectors) * era.SectorSize
	where := "the list"
	if known == 0 && c.metadata != "" {
		var err error
		if known, err = metadataBlockSize(ctx, c.metadata); err != nil {
			return 0, err
		}
		where = c.metadata
	}
	switch {
	case known != 0 && told != 0 && told != known:
		return 0, usagef("--block-size is %d bytes, that of %s %d", told, where, known)
	case known != 0:
		return known, nil
	case told != 0:
		return told, nil
	}
	if size, ok := activeBlockSize(path, g); ok {
		return size, nil
	}
	return 0, usagef("the block size is not known: give --block-size or --metadata, or a list in JSON")
}

// metadataBlockSize reads the block size from metadata, which may be in use: it
// never changes.
func metadataBlockSize(ctx context.Context, path string) (int64, error) {
	in, err := openEra(ctx, path, true)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	m, err := era.Open(in, in.dev.Size())
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return m.Superblock().BlockBytes(), nil
}

// activeBlockSize asks the kernel for the block size of an era device. It reports
// false for everything else.
func activeBlockSize(path string, g *globals) (int64, bool) {
	ctl, err := dm.Open()
	if err != nil {
		return 0, false
	}
	defer ctl.Close()
	dev, err := dmera.Open(ctl, path, dmera.Options{RunDir: g.runDir, StateDir: g.stateDir})
	if err != nil {
		return 0, false
	}
	defer dev.Close()
	return dev.BlockSize(), true
}

// toBytes returns where a set of ranges lies, and refuses what no device can hold.
func (l blockList) toBytes(blockSize int64) (extent.Set, error) {
	var all []extent.Extent
	for _, r := range l.ranges {
		if int64(r.End) > math.MaxInt64/blockSize {
			return extent.Set{}, fmt.Errorf("era: list: block %d of %d bytes: %w", r.End, blockSize, errList)
		}
		all = append(all, extent.Extent{Off: int64(r.Begin) * blockSize, Len: int64(r.End-r.Begin) * blockSize})
	}
	return extent.NewSet(all...), nil
}

// extents returns the part of a device of deviceSize bytes that the list names.
func (l blockList) extents(blockSize, deviceSize int64) (extent.Set, error) {
	set, err := l.toBytes(blockSize)
	if err != nil {
		return set, err
	}
	if last := set.End() - blockSize; last >= deviceSize {
		return set, fmt.Errorf("era: list: block %d of %s begins at byte %d, the device has %d: %w",
			last/blockSize, size(blockSize), last, deviceSize, errList)
	}
	return set.Clip(extent.Extent{Len: deviceSize}), nil
}

// decodeListJSON reads a list of "era invalidate --json".
func decodeListJSON(r io.Reader) (blockList, error) {
	var in listJSON
	dec := json.NewDecoder(r)
	if err := dec.Decode(&in); err != nil {
		return blockList{}, fmt.Errorf("JSON: %w: %w", era.ErrXML, err)
	}
	if in.BlockSize == nil || in.Blocks == nil || *in.BlockSize == 0 {
		return blockList{}, fmt.Errorf("JSON: no block_size, or no blocks: %w", era.ErrXML)
	}
	list := blockList{sectors: *in.BlockSize}
	for _, b := range *in.Blocks {
		if b[0] >= b[1] {
			return blockList{}, fmt.Errorf("JSON: range from %d to %d is empty: %w", b[0], b[1], era.ErrXML)
		}
		list.ranges = append(list.ranges, era.Range{Begin: b[0], End: b[1]})
	}
	if _, err := dec.Token(); err != io.EOF {
		return blockList{}, fmt.Errorf("JSON: more after the list: %w", era.ErrXML)
	}
	return list, nil
}
