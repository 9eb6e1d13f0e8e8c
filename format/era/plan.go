package era

import (
	"fmt"
	"math"
)

// PlanOptions describes the load that the metadata must bear. The zero value asks for the
// usual: ten snapshots, ten undigested eras.
type PlanOptions struct {
	Snapshots  int // taken and dropped one after the other; 0 means 10
	Undigested int // eras waiting to be digested at the worst moment; 0 means 10
}

// Plan is how much metadata a device needs. All sizes are in bytes, of whole metadata
// blocks, computed by following the kernel's allocations one by one.
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
	n := ceilDiv(uint64(deviceBytes)/SectorSize, uint64(blockSectors))
	if n >= maxNrBlocks {
		least := ceilDiv(ceilDiv(uint64(deviceBytes)/SectorSize, maxNrBlocks-1), 8) * 8
		return Plan{}, fmt.Errorf("era: plan: %d data blocks, the limit is %d: use blocks of %d sectors or more", n, maxNrBlocks-1, least)
	}
	if o.Snapshots == 0 {
		o.Snapshots = 10
	}
	if o.Undigested == 0 {
		o.Undigested = 10
	}
	p := Plan{BlockSectors: blockSectors, NrBlocks: uint32(n)}
	p.Create = leastSize(n, func(*model) {})
	p.SnapshotsMost = leastSize(n, func(m *model) { m.snapshots(o.Snapshots, false) })
	p.SnapshotsLeast = leastSize(n, func(m *model) { m.snapshots(o.Snapshots, true) })
	p.Worst = leastSize(n, func(m *model) { m.worst(o.Undigested) })
	p.Recommended = int64(ceilDiv(uint64(p.Worst), 1<<20)) << 20
	if (p.Recommended/BlockSize)%bitmapEntries == 0 {
		p.Recommended += 1 << 20
	}
	p.explain(o)
	if p.Worst > MaxMetadataBlocks*BlockSize {
		return p, fmt.Errorf("era: plan: needs %d bytes of metadata, the kernel uses %d at most: use larger data blocks", p.Worst, int64(MaxMetadataBlocks)*BlockSize)
	}
	return p, nil
}

// snapshots takes and drops snapshots one after the other.
func (m *model) snapshots(count int, digested bool) {
	for range count {
		m.takeSnapshot()
		m.dropSnapshot()
		if digested {
			m.digest()
		}
	}
}

// worst is the largest need: eras wait, a snapshot holds one copy of the era
// array, the live one is another, and a transaction copies it once more.
func (m *model) worst(undigested int) {
	for range undigested {
		m.rollover()
		m.commit()
	}
	m.takeSnapshot()
	m.rewriteArray()
	m.rewriteArray()
}

// leastSize returns the smallest size in bytes with which the device can be
// created and then do what work does.
func leastSize(nrBlocks uint64, work func(*model)) int64 {
	run := func(size, bitmaps uint64) *model {
		m := newModel(size, bitmaps, nrBlocks)
		m.activate()
		work(m)
		return m
	}
	blocks := run(0, 1).peak
	for {
		bitmaps := ceilDiv(blocks, bitmapEntries)
		if bitmaps == 1 && blocks%bitmapEntries != 0 {
			return int64(blocks) * BlockSize
		}
		// Which bitmaps a transaction touches depends on the size.
		if m := run(blocks, bitmaps); m.full || blocks%bitmapEntries == 0 {
			// The kernel never searches the last bitmap when it is whole
			// (sm_ll_find_free_block), so such a size is no use.
			blocks = max(blocks+1, m.peak)
			continue
		}
		return int64(blocks) * BlockSize
	}
}

// explain lists what Worst is made of. The last part is what the sum of the
// others leaves: half-filled nodes, and blocks between two commits.
func (p *Plan) explain(o PlanOptions) {
	n := uint64(p.NrBlocks)
	a, w := ceilDiv(n, erasPerBlock), ceilDiv(n, bitsPerBlock)
	sets := uint64(o.Undigested) + 2
	bitmaps := ceilDiv(uint64(p.Worst)/BlockSize, bitmapEntries)
	p.Parts = []PlanPart{
		{2, "superblock and the snapshot's copy of it"},
		{a, fmt.Sprintf("era array, %d eras of 4 bytes in each block", erasPerBlock)},
		{a, "the era array as the snapshot holds it, when all of it has changed since"},
		{a, "the era array once more: one transaction may copy all of it before it frees the old"},
		{sets * (w + treeNodes(w)), fmt.Sprintf("%d writesets, %d bits in each block: %d undigested, the snapshot's and the current", sets, bitsPerBlock, o.Undigested)},
		{3 * treeNodes(a), "btree over the three era arrays"},
		{2 * (bitmaps + 1), fmt.Sprintf("space map, %d blocks counted in each bitmap, before and after a commit", bitmapEntries)},
		{4, "reference count tree, writeset trees"},
	}
	sum := uint64(0)
	for _, part := range p.Parts {
		sum += part.Blocks
	}
	if total := uint64(p.Worst) / BlockSize; total > sum {
		p.Parts = append(p.Parts, PlanPart{total - sum, "nodes in the middle of a change"})
	}
}

// treeNodes returns how many nodes the kernel's btree over count array blocks
// has: keys come in ascending order, and a node is left with 248 of 252.
func treeNodes(count uint64) uint64 {
	full := uint64(maxEntries(childWidth))
	if count <= full {
		return 1
	}
	nodes := uint64(0)
	for count > full {
		count = uint64(math.Ceil(float64(count-4) / float64(full-4)))
		nodes += count
	}
	return nodes + 1
}
