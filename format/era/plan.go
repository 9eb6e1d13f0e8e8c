package era

import (
	"cmp"
	"fmt"

	"tidemark/format/pdata"
)

// PlanOptions describes the load that the metadata must bear. The zero value asks for the
// usual: ten snapshots, ten undigested eras.
type PlanOptions struct {
	Snapshots  int // taken and dropped one after the other; 0 means 10
	Undigested int // eras waiting to be digested at the worst moment; 0 means 10
}

// Plan is how much metadata a device needs. All sizes are in bytes, of whole metadata
// blocks. Up to 63 MiB, which one bitmap of the space map counts, no size is a block more
// than needed; above that Create, SnapshotsLeast and SnapshotsMost may have a block too
// much for each bitmap.
//
// Use Recommended. The other sizes explain it and compare it with Linux 6.1, for devices
// of 4 MiB to 16 TiB in blocks of 4096 and 8192 sectors, and for smaller devices in blocks
// of 128:
//
//   - The kernel creates a device with Create, and not with a block less.
//   - It takes and drops ten snapshots, one after the other, only with SnapshotsLeast or
//     more.
//   - With Worst it does so between writes and checkpoints.
//
// The dm-era tutorial lists the sizes, in KiB for blocks of 4096 sectors, with which its
// machine took ten snapshots: 64 up to 1 GiB, 68 for 2 GiB, … 42388 for 16 TiB. They lie
// between SnapshotsLeast (all of them up to 128 GiB) and SnapshotsMost (8 TiB), because
// the tutorial's kernel had not digested every era before the next snapshot. At 4 TiB
// they are 7 blocks above SnapshotsMost: before 5.13 a kernel left nodes of the era
// array's tree half empty. A machine that digests slowly needs more at any size, as 104
// KiB instead of 96 at 16 GiB. So the tutorial's sizes are not safe to use.
type Plan struct {
	BlockSectors uint32 `json:"block_size"` // of a data block
	NrBlocks     uint32 `json:"nr_blocks"`  // data blocks

	// Create is the smallest size with which the device can be created.
	Create int64 `json:"create"`
	// SnapshotsLeast and SnapshotsMost are the smallest sizes with which an
	// idle device can be created and the snapshots taken and dropped:
	// SnapshotsLeast when the kernel digests each era before the next
	// snapshot, SnapshotsMost when it digests none. A real kernel is between
	// the two, or some blocks above when it digests while a snapshot is held.
	SnapshotsLeast int64 `json:"snapshots_least"`
	SnapshotsMost  int64 `json:"snapshots_most"`
	// Worst is enough for any load while a snapshot is held, as long as no
	// more eras wait to be digested than was asked for.
	Worst int64 `json:"worst"`
	// Recommended is Worst, rounded up to a MiB.
	Recommended int64 `json:"recommended"`

	// Parts explains Worst.
	Parts []PlanPart `json:"parts"`
}

// PlanPart is one reason for metadata blocks.
type PlanPart struct {
	Blocks uint64 `json:"blocks"`
	Why    string `json:"why"`
}

// NewPlan computes what metadata a device of deviceBytes needs when it is
// tracked in data blocks of blockSectors. It fails when the kernel would refuse
// the block size, or the metadata would outgrow what a space map can describe.
func NewPlan(deviceBytes int64, blockSectors uint32, o PlanOptions) (Plan, error) {
	if blockSectors == 0 || blockSectors%8 != 0 {
		return Plan{}, fmt.Errorf("era: plan: block size of %d sectors: want a multiple of 8", blockSectors)
	}
	if deviceBytes < SectorSize {
		return Plan{}, fmt.Errorf("era: plan: device of %d bytes: want a sector or more", deviceBytes)
	}
	n := pdata.CeilDiv(uint64(deviceBytes)/SectorSize, uint64(blockSectors))
	if n >= maxNrBlocks {
		least := pdata.CeilDiv(pdata.CeilDiv(uint64(deviceBytes)/SectorSize, maxNrBlocks-1), 8) * 8
		return Plan{}, fmt.Errorf("era: plan: %d data blocks, the limit is %d: use blocks of %d sectors or more", n, maxNrBlocks-1, least)
	}
	o.Snapshots, o.Undigested = cmp.Or(o.Snapshots, 10), cmp.Or(o.Undigested, 10)
	for _, eras := range [...]int{o.Snapshots, o.Undigested} {
		if eras < 0 || eras > MaxMetadataBlocks {
			return Plan{}, fmt.Errorf("era: plan: %d snapshots or undigested eras: want 0 to %d", eras, MaxMetadataBlocks)
		}
	}
	p := Plan{BlockSectors: blockSectors, NrBlocks: uint32(n)}
	p.compute(o)
	if p.Worst > MaxMetadataBlocks*BlockSize {
		return p, fmt.Errorf("era: plan: needs %d bytes of metadata, the kernel uses %d at most: use larger data blocks", p.Worst, int64(MaxMetadataBlocks)*BlockSize)
	}
	return p, nil
}

// compute fills in the sizes and what Worst is made of.
//
// The kernel copies a committed block before it changes it, and uses a block that a
// transaction has freed only after the commit. So a device needs as many blocks as are, at
// any moment, in use now or at the last commit:
//
//   - While it is created: the superblock, the reference count tree, the era array, a
//     writeset and an empty tree of writesets.
//   - While a snapshot is taken: a further writeset for each era that is not digested, and
//     the tree of writesets as it was, where the new one differs. When each era is digested
//     before the next snapshot, the writeset of the one before is free only after a commit.
//   - At worst: eras wait, a snapshot holds one copy of the era array, the live one is
//     another, and a transaction copies that once more.
func (p *Plan) compute(o PlanOptions) {
	a, w := pdata.CeilDiv(uint64(p.NrBlocks), erasPerBlock), pdata.CeilDiv(uint64(p.NrBlocks), bitsPerBlock)
	arrayNodes, _ := treeNodes(a, pdata.ChildWidth)
	writesetNodes, _ := treeNodes(w, pdata.ChildWidth)
	array, writeset := a+arrayNodes, w+writesetNodes

	snapshots := func(undigested int) int64 {
		nodes, _ := treeNodes(uint64(undigested), writesetWidth)
		_, copied := treeNodes(uint64(undigested-1), writesetWidth)
		size, _ := withSpaceMap(2 + array + uint64(undigested+1)*writeset + nodes + copied)
		return size
	}
	p.Create, _ = withSpaceMap(2 + array + writeset + 1)
	p.SnapshotsLeast, p.SnapshotsMost = snapshots(min(o.Snapshots, 2)), snapshots(o.Snapshots)

	sets := uint64(o.Undigested) + 2
	archive, _ := treeNodes(sets-1, writesetWidth)
	var bitmaps uint64
	p.Worst, bitmaps = withSpaceMap(2 + 3*array + sets*writeset + 1 + archive)
	p.Recommended = int64(pdata.CeilDiv(uint64(p.Worst), 1<<20)) << 20
	if (p.Recommended/BlockSize)%pdata.BitmapEntries == 0 {
		p.Recommended += 1 << 20
	}
	p.Parts = []PlanPart{
		{2, "superblock and the snapshot's copy of it"},
		{a, fmt.Sprintf("era array, %d eras of 4 bytes in each block", erasPerBlock)},
		{a, "the era array as the snapshot holds it, when all of it has changed since"},
		{a, "the era array once more: one transaction may copy all of it before it frees the old"},
		{sets * writeset, fmt.Sprintf("%d writesets, %d bits in each block: %d undigested, the snapshot's and the current", sets, bitsPerBlock, o.Undigested)},
		{3 * arrayNodes, "btree over the three era arrays"},
		{2 * (bitmaps + 1), fmt.Sprintf("space map, %d blocks counted in each bitmap, before and after a commit", pdata.BitmapEntries)},
		{1 + archive, "reference count tree, writeset tree"},
	}
}

// withSpaceMap returns the size in bytes of metadata with that many blocks beside the
// bitmaps of the space map and its index, of which a transaction may copy all, and how many
// bitmaps there are. The kernel never searches the last bitmap when it is whole
// (sm_ll_find_free_block), so such a size is no use.
func withSpaceMap(blocks uint64) (size int64, bitmaps uint64) {
	for bitmaps = 1; ; bitmaps++ {
		if n := blocks + 2*(bitmaps+1); n < bitmaps*pdata.BitmapEntries {
			return int64(n) * BlockSize, bitmaps
		}
	}
}

// treeNodes returns how many nodes and levels the kernel's btree over count entries has,
// whose keys come in ascending order. A full node first gives half of its entries away to a
// new one on its right, and then takes back from that one when it is full, as long as it
// has room for 8 or more itself (SPACE_THRESHOLD).
func treeNodes(count uint64, valueSize int) (nodes, depth uint64) {
	most := uint64(pdata.MaxEntries(valueSize))
	kept := most / 2
	for most-kept >= 8 {
		kept = (kept + most) / 2
	}
	if count <= most {
		return 1, 1
	}
	level := pdata.CeilDiv(count-(most-kept), kept)
	nodes, depth = treeNodes(level, pdata.ChildWidth)
	return level + nodes, depth + 1
}
