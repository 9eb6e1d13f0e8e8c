//go:build linux

package guest

import (
	"fmt"
	"os"
	"testing"

	"tidemark/block"
)

// Array makes an md of the first 24 MiB of each member, without metadata, through sysfs
// (Documentation/admin-guide/md.rst). It is taken apart at the end of the test.
func Array(t testing.TB, level string, members ...string) string {
	t.Helper()
	Modprobe(t, "md-mod", "md-"+level)
	// From Linux 6.18 on, what is cleared may stay, and so does its name; as for old versions of mdadm.
	const stays = "/sys/module/md_mod/parameters/legacy_async_del_gendisk"
	if _, err := os.Stat(stays); err == nil {
		WriteFile(t, stays, "N")
	}
	WriteFile(t, "/sys/module/md_mod/parameters/new_array", "md_tidemark")
	dir := "/sys/block/md_tidemark/md/"
	WriteFile(t, dir+"metadata_version", "none")
	WriteFile(t, dir+"level", level)
	WriteFile(t, dir+"raid_disks", fmt.Sprint(len(members)))
	if level != "raid1" {
		WriteFile(t, dir+"chunk_size", "65536")
	}
	if level != "raid0" {
		WriteFile(t, dir+"component_size", "24576") // KiB
		WriteFile(t, dir+"resync_start", "none")
	}
	for i, member := range members {
		id, err := block.Identify(member)
		if err != nil {
			t.Fatal(err)
		}
		WriteFile(t, dir+"new_dev", fmt.Sprintf("%d:%d", id.DiskMajor, id.DiskMinor))
		WriteFile(t, dir+"dev-"+id.Disk+"/size", "24576")
		WriteFile(t, dir+"dev-"+id.Disk+"/slot", fmt.Sprint(i))
	}
	t.Cleanup(func() { WriteFile(t, dir+"array_state", "clear") })
	WriteFile(t, dir+"array_state", "active")
	return "/dev/md_tidemark"
}
