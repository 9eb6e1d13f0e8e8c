package era

import (
	"testing"

	"tidemark/format/pdata"

	"pgregory.net/rapid"
)

// TestModelEqualsKernel compares the model, block by block, with what Linux 6.1
// left on disk after creating a device.
func TestModelEqualsKernel(t *testing.T) {
	m := theCaseNamed(t, "c08-fresh.fresh-live").open(t)
	s := m.Superblock()
	model := newModel(s.SpaceMap.Blocks, 1, uint64(s.NrBlocks))
	model.activate()
	got := [5]Addr{model.index, model.writesets, model.array, model.current, Addr(model.inUse())}
	want := [5]Addr{s.SpaceMap.Index, s.WritesetTree, s.EraArray, s.CurrentRoot, Addr(s.SpaceMap.Allocated)}
	if got != want {
		t.Errorf("index, writesets, array, current, in use: %v, the kernel has %v", got, want)
	}
}

// The kernel was seen to use 1076 blocks for 2^20 data blocks, and 1111 with a
// snapshot; 1031 array blocks made 5 nodes of 248, 248, 248, 126 and 161.
func TestModelEqualsKernelWithInternalNodes(t *testing.T) {
	model := newModel(0, 1, 1<<20)
	model.activate()
	if n := model.inUse(); n != 1076 {
		t.Errorf("%d blocks in use, the kernel used 1076", n)
	}
	root := model.nodes[model.array]
	for i, want := range []int{248, 248, 248, 126, 161} {
		if n := len(model.nodes[root.values[i]].keys); n != want {
			t.Errorf("node %d has %d entries, want %d", i, n, want)
		}
	}
	model.takeSnapshot()
	if n := model.inUse(); n != 1111 {
		t.Errorf("%d blocks in use with a snapshot, the kernel used 1111", n)
	}
}

// The dm-era tutorial found by trial how many KiB a device of so many GiB needs
// in blocks of 4096 sectors to be created and to take ten snapshots. How much is
// digested between two of them depended on its machine: all of it up to 128 GiB,
// hardly any from 8 TiB on. At 4 TiB it is 7 blocks above our largest: kernels
// before 5.13 left the nodes of a growing btree half full, which is 7 or 8 nodes
// more for the 2061 blocks of that era array.
func TestPlanExplainsTheTutorial(t *testing.T) {
	const older = 8 * BlockSize
	tutorial := map[int64]int64{
		1: 64, 2: 68, 4: 72, 8: 80, 16: 96, 32: 128, 64: 204, 128: 344, 256: 628, 512: 1336,
		1024: 2768, 2048: 5568, 4096: 11248, 8192: 22308, 16384: 42388,
	}
	for gib, kib := range tutorial {
		p, err := NewPlan(gib<<30, 4096, PlanOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if kib<<10 < p.SnapshotsLeast || kib<<10 > p.SnapshotsMost+older {
			t.Errorf("%d GiB: tutorial %d KiB is not between %d and %d", gib, kib, p.SnapshotsLeast>>10, p.SnapshotsMost>>10)
		}
		if gib <= 128 && kib<<10 != p.SnapshotsLeast || gib == 8192 && kib<<10 != p.SnapshotsMost {
			t.Errorf("%d GiB: tutorial %d KiB, plan %d to %d", gib, kib, p.SnapshotsLeast>>10, p.SnapshotsMost>>10)
		}
		sum := uint64(0)
		for _, part := range p.Parts {
			sum += part.Blocks
		}
		if p.Create > p.SnapshotsLeast || p.SnapshotsMost > p.Worst || p.Worst > p.Recommended || int64(sum)*BlockSize < p.Worst {
			t.Errorf("%d GiB: %+v", gib, p)
		}
	}
}

// A plan's sizes are those that the model needs, which follows the kernel's allocations
// one by one. With several bitmaps the plan may have a block more for each: a transaction
// need not touch all of them.
// need is one size that a plan tells, and the work that it has to be enough for.
type need struct {
	what string
	got  int64
	work func(*model)
}

func (n need) String() string { return n.what }

func TestPlanIsWhatTheModelNeeds(t *testing.T) {
	full := uint64(pdata.MaxEntries(pdata.ChildWidth))
	edges := []uint64{1, 2, erasPerBlock, bitsPerBlock, bitsPerBlock + 1}
	for _, nodes := range []uint64{full, 2*full - 4, 3*full - 8} {
		edges = append(edges, nodes*erasPerBlock, nodes*erasPerBlock+1, nodes*bitsPerBlock, nodes*bitsPerBlock+1)
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.OneOf(rapid.SampledFrom(edges), rapid.Uint64Range(1, 1<<16), rapid.Uint64Range(1, 1<<20), rapid.Uint64Range(1, 1<<22)).Draw(t, "data blocks")
		o := PlanOptions{
			Snapshots:  rapid.OneOf(rapid.IntRange(1, 12), rapid.IntRange(190, 210), rapid.Just(400)).Draw(t, "snapshots"),
			Undigested: rapid.OneOf(rapid.IntRange(1, 12), rapid.IntRange(190, 210), rapid.Just(400)).Draw(t, "undigested"),
		}
		p := Plan{NrBlocks: uint32(n)}
		p.compute(o)
		// One of the four for each draw: the model takes long.
		x := rapid.SampledFrom([]need{
			{"create", p.Create, func(*model) {}},
			{"snapshots at least", p.SnapshotsLeast, func(m *model) { m.snapshots(o.Snapshots, true) }},
			{"snapshots at most", p.SnapshotsMost, func(m *model) { m.snapshots(o.Snapshots, false) }},
			{"worst", p.Worst, func(m *model) { m.worst(o.Undigested) }},
		}).Draw(t, "need")
		want := leastSize(n, x.work)
		spare := (x.got - want) / BlockSize
		bitmaps := x.got/BlockSize/pdata.BitmapEntries + 1
		if spare < 0 || spare > 0 && (bitmaps == 1 || x.what == "worst") || spare > bitmaps {
			t.Errorf("%s: %d blocks, the model needs %d", x.what, x.got/BlockSize, want/BlockSize)
		}
		sum := int64(0)
		for _, part := range p.Parts {
			sum += int64(part.Blocks)
		}
		if sum*BlockSize != p.Worst {
			t.Errorf("the parts are %d blocks, the whole %d", sum, p.Worst/BlockSize)
		}
	})
}

func TestPlanRefuses(t *testing.T) {
	for _, x := range []struct {
		bytes   int64
		sectors uint32
	}{{1 << 30, 0}, {1 << 30, 7}, {0, 8}, {-5, 8}, {16 << 40, 8}, {1 << 62, 8}, {1 << 50, 4096 / 8}} {
		if p, err := NewPlan(x.bytes, x.sectors, PlanOptions{}); err == nil {
			t.Errorf("%+v: %+v", x, p)
		}
	}
}

func BenchmarkPlan(b *testing.B) {
	for b.Loop() {
		if _, err := NewPlan(16<<40, 128, PlanOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
