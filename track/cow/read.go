package cow

import (
	"context"
	"encoding/binary"
	"fmt"

	"tidemark/block"
	"tidemark/extent"
)

// exceptions returns what has an exception in the store; with only, the store's header is
// looked at, and no more.
func (t *Tracker) exceptions(ctx context.Context, only bool) (extent.Set, error) {
	chunk := t.found.snapshot.ChunkSize
	buf := block.AlignedBuffer(int(chunk))
	if _, err := t.store.ReadAt(buf, 0); err != nil {
		return extent.Set{}, err
	}
	if binary.LittleEndian.Uint32(buf) != 0x70416e53 || binary.LittleEndian.Uint32(buf[4:]) != 1 || int64(binary.LittleEndian.Uint32(buf[12:]))*512 != chunk {
		return extent.Set{}, fmt.Errorf("track: %s: bad header", t.store.Path())
	}
	if only {
		return extent.Set{}, nil
	}
	var exts []extent.Extent
	perArea := chunk / 16
	for area := int64(0); ; area++ {
		if _, err := t.store.ReadAt(buf, (1+area*(perArea+1))*chunk); err != nil {
			return extent.Set{}, err
		}
		for i := range perArea {
			oldChunk, newChunk := binary.LittleEndian.Uint64(buf[i*16:]), binary.LittleEndian.Uint64(buf[i*16+8:])
			if newChunk == 0 {
				return extent.NewSet(exts...), context.Cause(ctx)
			}
			exts = append(exts, extent.Extent{Off: int64(oldChunk) * chunk, Len: min(chunk, t.source.Size()-int64(oldChunk)*chunk)})
		}
	}
}
