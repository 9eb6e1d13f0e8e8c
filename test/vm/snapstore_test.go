package vm

import "testing"

var lvm2 = []string{"lvm", "lvs", "lvchange", "lvcreate", "lvconvert", "lvremove", "pvcreate", "vgcreate", "vgchange", "vgremove"}

func TestSnapstoreExplore(t *testing.T) {
	program := Build(t, "tidemark/test/vm/guest/snapstore")
	Run(t, Config{
		Kernel: Linux612, Modules: []string{"dm-snapshot", "dm-thin-pool"}, Programs: lvm2,
		Disks: []Disk{NewDisk(t, "data", 256<<20)},
	}, program)
}
