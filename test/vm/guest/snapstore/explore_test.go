//go:build linux

package snapstore_test

import (
	"os"
	"os/exec"
	"testing"

	"tidemark/test/vm/guest"
)

func TestMain(m *testing.M) { guest.Main(m) }

func TestExplore(t *testing.T) {
	disk := guest.Disk(t, "data")
	os.Setenv("D", disk)
	script := `
exec 2>&1
set -x
mkdir -p /etc/lvm
cat >/etc/lvm/lvm.conf <<X
activation { udev_sync=0 udev_rules=0 monitoring=0 }
devices { use_devicesfile=0 }
X
pvcreate $D
vgcreate vg $D
lvcreate -an -Zn -L 16M -n lv vg
lvcreate -L 16M -Zn -n lv2 vg
lvcreate -ay -Zn -Wn -L 16M -n lv3 vg
lvchange -ay vg/lv
lvcreate -s -L 8M -n snap -c 4k vg/lv
lvcreate -s -L 8M -n snap2 -c 4k vg/lv3
lvcreate -L 16M -T vg/pool
lvcreate -V 16M -T vg/pool -n thin
lvcreate -s vg/thin -n thinsnap -kn -ay
lvs -a
F=vg_name,vg_uuid,lv_name,lv_uuid,lv_size,lv_layout,lv_role,lv_tags,lv_path,origin,pool_lv,data_lv,metadata_lv,lv_active_locally,lv_device_open,lv_suspended,lv_skip_activation,lv_merging,lv_converting,lv_merge_failed,lv_snapshot_invalid,thin_id,chunk_size
lvs -a --reportformat json --units b --nosuffix --binary -o $F
dmsetup table; dmsetup info -c
ls -la /dev/mapper /dev/vg
echo TAGSKIP
lvchange -ky --addtag tidemark_apply vg/lv; echo rc $?
lvchange -an vg/lv; echo rc $?
lvchange -ay vg/lv; echo rc $?
vgchange -ay vg; dmsetup ls
lvchange -ay -K vg/lv; echo rc $?
dmsetup ls
lvchange -kn --deltag tidemark_apply vg/lv; echo rc $?
lvs -a -o+tags
echo MERGE
exec 3</dev/vg/lv
lvconvert --merge vg/snap; echo rc $?
lvs -a
lvs -a --reportformat json --units b --nosuffix --binary -o $F vg
dmsetup table
exec 3<&-
lvchange -an vg/lv
lvchange -ay vg/lv
sleep 2
lvs -a
dmsetup table
echo EVENTS
dmsetup info -c vg-lv3 vg-snap2
dmsetup table vg-lv3 >/tmp/t
dmsetup load vg-lv3 </tmp/t; dmsetup suspend vg-lv3; dmsetup resume vg-lv3
dmsetup info -c vg-lv3
cat /sys/block/dm-*/diskseq
echo ERR
lvs nope; echo rc $?
lvs vg/nope; echo rc $?
lvs; echo rc $?
lvchange -an vg/nope; echo rc $?
dd if=/dev/urandom of=/dev/vg/lv3 bs=1M count=16 oflag=direct
lvs -a --reportformat json --binary -o lv_name,lv_snapshot_invalid,lv_active_locally,lv_merging vg
dmsetup status
lvs -a
`
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	t.Logf("%s %v", out, err)
	t.Fail()
}
