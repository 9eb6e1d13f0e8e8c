package main

import (
	"fmt"
	"slices"
)

const snapshotRounds = 2

// snapshots measures in the rig how long writers wait while a snapshot is taken, and how fast they
// are with one, beside lvm2's snapshots.
func snapshots(l *lab) error {
	fmt.Printf("## Snapshots beside lvm2's\n\next4 on a linear table of a virtio disk, and on a logical volume of another, in an emulated guest of one processor, in turns. Wait: the longest write of 4 KiB with O_DSYNC while a snapshot was taken, 20 times, each volume with a writer; ours of all volumes at one instant, lvm2's one after the other. Writes: 1500 of 4 KiB by fio, direct, each to a chunk of its own at random, and the same ones again, %d rounds; the store in a file on the same filesystem, or lvm2's extents on the same disk, and on another disk. Emulation makes the processor's part far larger than it is.\n\n", snapshotRounds)
	figures, err := l.inRig("TestSnapshotCost", "-snapshot-rounds", snapshotRounds)
	if err != nil {
		return err
	}
	for _, kernel := range []string{"6.1", "6.12"} {
		fmt.Printf("| Linux %s | no snapshot, ms, median (worst of 20) | `tidemark snapshot create` | `lvcreate --snapshot` of each | tidemark / lvm2 |\n|---|---|---|---|---|\n", kernel)
		for _, volumes := range []string{"1", "3"} {
			fmt.Printf("| longest wait of a writer, volumes: %s", volumes)
			var of []sample
			for _, who := range []string{"none", "ours-same", "lvm2-same"} {
				s := figures[kernel+" wait "+volumes+" "+who]
				if len(s) == 0 {
					return fmt.Errorf("no figures of the wait with %s volumes, %s", volumes, who)
				}
				of = append(of, s)
				fmt.Printf(" | %.0f (%.0f)", s.median(), slices.Max(s))
			}
			fmt.Printf(" | **%.2f (%.2f)** |\n", of[1].median()/of[2].median(), slices.Max(of[1])/slices.Max(of[2]))
		}
		fmt.Printf("\n| Linux %s, random writes of 4 KiB | no snapshot, IOPS | the same, logical volume | same disk: tidemark / none | lvm2 / none | tidemark / lvm2 | other disk: tidemark / none | lvm2 / none | tidemark / lvm2 |\n|---|---|---|---|---|---|---|---|---|\n", kernel)
		for _, chunk := range []string{"4K", "8K", "64K"} {
			for _, depth := range []string{"1", "16"} {
				for _, which := range []string{"first", "second"} {
					if err := snapshotRow(figures, kernel, chunk, depth, which); err != nil {
						return err
					}
				}
			}
		}
		fmt.Println()
	}
	return nil
}

// snapshotRow prints the medians of one kind of writes.
func snapshotRow(figures map[string]sample, kernel, chunk, depth, which string) error {
	of := map[string]sample{}
	for _, who := range []string{"ours-none", "lvm2-none", "ours-same", "lvm2-same", "ours-other", "lvm2-other"} {
		of[who] = figures[kernel+" "+chunk+" "+depth+" "+which+" "+who]
		if len(of[who]) != snapshotRounds {
			return fmt.Errorf("%d figures of the %s write to chunks of %s, %s", len(of[who]), which, chunk, who)
		}
	}
	fmt.Printf("| chunks of %s, queue depth %s, %s write | %.0f | %.0f", chunk, depth, which, of["ours-none"].median(), of["lvm2-none"].median())
	for _, where := range []string{"same", "other"} {
		ours, theirs := of["ours-"+where], of["lvm2-"+where]
		fmt.Printf(" | %.2f | %.2f | **%.2f**", ours.over(of["ours-none"]).median(), theirs.over(of["lvm2-none"]).median(), ours.over(theirs).median())
	}
	fmt.Println(" |")
	return nil
}
