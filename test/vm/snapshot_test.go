package vm

import (
	"flag"
	"fmt"
	"testing"
)

var snapshotTests = flag.String("snapshot-tests", "", "the `pattern` of the tests of live snapshots to run in guests")

var snapshotCuts = flag.Int("snapshot-cuts", 9, "how many moments of a snapshot's life to cut the power at")

// leftToTheOther are the tests of live snapshots that take long and that the other kernel has for both.
func leftToTheOther(k Kernel) string {
	return k.skipped(
		"^TestACopyAndTheChangesAreTheNextSnapshot$|^TestTrapsOfDattobd$|^TestKilledChangesOfTheMode$|^TestErrorsOfDbdctl$"+
			"|^TestStoresOfPartsAndInMemory$|^TestTheExampleOfPackageSnapshot$|^TestMirrorsOfALogicalVolume$|^TestMirrorsByTheViewDM$/^xfs$|^TestSeveralDevicesAndSeveralSnapshots$"+
			"|^TestImagesAreTheInstant$/^(xfs_inside|ext4,_a_file|btrfs,_a_file)$|^TestAMergeLosesTheMarks$"+
			"|^TestAStoreInsideGrows$/^ext4,_persistent$|^TestOverflowAndGrowth$|^TestAnOriginWithLUKS$",
		"^TestPowerCutAtEveryStep$|^TestKilledCommands$|^TestIncrementalBackupsOfDattobd$|^TestModesAndStores$|^TestAnEraDevice$"+
			"|^TestMirrorsByTheViewDM$/^ext4$|^TestAnOriginOnALogicalVolume$|^TestImagesAreTheInstant$/^(ext4_inside|xfs,_a_file|ext4,_a_disk)$"+
			"|^TestAStoreInsideGrows$/^(ext4|xfs)$|^TestAMultipathDevice$|^TestRemounts$|^TestWritesAtEveryEdge$")
}

// Snapshots of devices in use are what the devices held at the instant, and nothing of them is
// left, whatever ends them.
func TestLiveSnapshots(t *testing.T) {
	t.Parallel()
	program := Build(t, "tidemark/test/vm/guest/snapshot")
	command, example := BuildCommand(t, "tidemark/cmd/tidemark"), Build(t, "tidemark/snapshot")
	for _, kernel := range forMapper() {
		t.Run(string(kernel), func(t *testing.T) {
			t.Parallel()
			skip := "^TestMeasure$"
			if more := leftToTheOther(kernel); more != "" && *snapshotTests == "" {
				skip += "|" + more
			}
			r := Run(t, Config{
				Kernel: kernel, MemMB: 1024, Timeout: busyTimeout, Tests: *snapshotTests, Skip: skip, Env: []string{fmt.Sprintf("CUTS=%d", *snapshotCuts)},
				Modules: []string{"dm-snapshot", "dm-zero", "dm-mirror", "dm-era", "ext4", "xfs", "btrfs", "loop"}, Programs: append([]string{"fio", "fstrim", "e2fsck"}, lvm2...),
				Files: map[string]string{"/bin/tidemark": command, "/bin/snapshot.test": example.Path},
				Disks: []Disk{NewDisk(t, "data", 128<<20), NewDisk(t, "store", 16<<20)},
			}, program)
			t.Logf("boot %v, all %v, %d tests", r.Boot, r.Total, r.Tests)
		})
	}
}

var snapshotRounds = flag.Int("snapshot-rounds", 0, "measure as often how fast devices with a snapshot are; bench/run does")

// What a snapshot costs, ours and lvm2's: figures for bench/run, and nothing that can fail by being
// slow.
func TestSnapshotCost(t *testing.T) {
	if *snapshotRounds == 0 {
		t.Skip("a measurement: bench/run -only snapshot")
	}
	program := Build(t, "tidemark/test/vm/guest/snapshot")
	command := BuildCommand(t, "tidemark/cmd/tidemark")
	for _, kernel := range forMapper() {
		t.Run(string(kernel), func(t *testing.T) {
			Run(t, Config{
				Kernel: kernel, Timeout: busyTimeout, Tests: "^TestMeasure$",
				Modules: []string{"dm-snapshot", "ext4"}, Programs: append([]string{"fio"}, lvm2...), Files: map[string]string{"/bin/tidemark": command},
				Disks: []Disk{NewDisk(t, "data", 512<<20), NewDisk(t, "store", 256<<20), NewDisk(t, "pv", 768<<20), NewDisk(t, "pv2", 256<<20)},
				Env:   []string{fmt.Sprintf("MEASURE=%d", *snapshotRounds), "KERNEL=" + string(kernel)},
			}, program)
		})
	}
}
