//go:build linux

package era_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/format/era"
	"tidemark/linux/dmera"
	"tidemark/test/vm/guest"
)

// said is what "era status --json" prints of a device.
type said struct {
	Name, Device, Data, Meta, Identity string
	Size                               int64
	DataSize                           int64 `json:"data_size"`
	BlockSize                          int64 `json:"block_size"`
	Suspended                          bool
	Kernel                             *dmera.Status
	Warnings                           []string
}

func statusOf(t testing.TB, name string) said {
	t.Helper()
	var all []said
	if err := json.Unmarshal([]byte(works(t, "era", "status", "--json", name)), &all); err != nil || len(all) != 1 {
		t.Fatalf("era status: %v, %v", all, err)
	}
	return all[0]
}

// A device lives through the commands as dmsetup sees it: made, taken down, brought
// up, grown while it is mounted.
func TestLifeOfADevice(t *testing.T) {
	disk, meta := guest.Disk(t, "data"), guest.Disk(t, "meta")
	data := guest.Mapper(t, "under", "0 65536 linear "+disk+" 0")
	zero(t, meta)
	ctl := control(t)
	t.Cleanup(func() { removed(t, ctl, "life") })

	works(t, "era", "create", "life", "--data", data, "--meta", meta, "--block-size", "64K")
	s := statusOf(t, "life")
	table := guest.Run(t, "dmsetup", "table", "life")
	if want := fmt.Sprintf("0 65536 era %s %s 128", number(t, meta), number(t, data)); table != want {
		t.Errorf("table %q, want %q", table, want)
	}
	if s.Size != 32*mib || s.BlockSize != 64*kib || s.Identity == "" || !s.Kernel.DiscardsDisabled || s.Kernel.Era != 1 || len(s.Warnings) != 0 {
		t.Errorf("status of a new device: %+v, %+v", s, *s.Kernel)
	}
	id := s.Identity
	mount := mounted(t, "/dev/mapper/life")
	guest.WriteFile(t, filepath.Join(mount, "kept"), "all along")
	noDiscards(t, "/dev/mapper/life")
	if _, errs, code := tidemark(t, "era", "close", "life"); code != 7 || !strings.Contains(errs, mount) {
		t.Errorf("close while mounted: exit code %d, %s", code, errs)
	}
	guest.Run(t, "umount", mount)
	works(t, "era", "close", "life")
	if sb := clean(t, meta); sb.CurrentRoot != 0 || sb.Identity.String() != id {
		t.Errorf("superblock after close: %+v", sb)
	}

	works(t, "era", "open", "life", "--data", data, "--meta", meta)
	works(t, "era", "open", "life", "--data", data, "--meta", meta, "--block-size", "64K") // is up already
	if s = statusOf(t, "life"); s.Kernel.Era != 2 || s.Identity != id || !s.Kernel.DiscardsDisabled {
		t.Errorf("status after open: %+v, %+v", s, *s.Kernel)
	}
	guest.Run(t, "mount", "/dev/mapper/life", mount)
	if b, err := os.ReadFile(filepath.Join(mount, "kept")); err != nil || string(b) != "all along" {
		t.Errorf("file after open: %q, %v", b, err)
	}

	guest.Run(t, "dmsetup", "load", "under", "--table", "0 98304 linear "+disk+" 0")
	guest.Run(t, "dmsetup", "resume", "under")
	if s = statusOf(t, "life"); s.DataSize != 48*mib || len(s.Warnings) != 1 {
		t.Errorf("status after the data has grown: %+v", s)
	}
	works(t, "era", "resize", "life")
	guest.Run(t, "resize2fs", "/dev/mapper/life")
	s = statusOf(t, "life")
	if s.Size != 48*mib || len(s.Warnings) != 0 || s.Kernel.Discards != 0 {
		t.Errorf("status after resize: %+v, %+v", s, *s.Kernel)
	}
	noDiscards(t, "/dev/mapper/life")
	guest.Run(t, "umount", mount)
	guest.Run(t, "e2fsck", "-fn", "/dev/mapper/life")
	works(t, "era", "close", "life")
	if sb := clean(t, meta); sb.NrBlocks != 48*16 || sb.Identity.String() != id {
		t.Errorf("superblock after resize: %+v", sb)
	}
}

// After the data device has grown, open gives the old size, for it must work at boot.
func TestOpenOfGrownData(t *testing.T) {
	disk, meta := guest.Disk(t, "data"), guest.Disk(t, "meta")
	data := guest.Mapper(t, "under", "0 65528 linear "+disk+" 0")
	zero(t, meta)
	ctl := control(t)
	t.Cleanup(func() { removed(t, ctl, "grown") })
	works(t, "era", "create", "grown", "--data", data, "--meta", meta, "--block-size", "64K")
	works(t, "era", "close", "grown")
	guest.Run(t, "dmsetup", "load", "under", "--table", "0 98304 linear "+disk+" 0")
	guest.Run(t, "dmsetup", "resume", "under")
	_, errs, code := tidemark(t, "era", "open", "grown", "--data", data, "--meta", meta)
	if s := statusOf(t, "grown"); code != 0 || s.Size != 32*mib || !strings.Contains(errs, "era resize grown") {
		t.Errorf("open: exit code %d, %s; %+v", code, errs, s)
	}
	works(t, "era", "resize", "grown")
	if s := statusOf(t, "grown"); s.Size != 48*mib {
		t.Errorf("resized: %+v", s)
	}
	works(t, "era", "close", "grown")
	guest.Run(t, "dmsetup", "load", "under", "--table", "0 65536 linear "+disk+" 0")
	guest.Run(t, "dmsetup", "resume", "under")
	refuses(t, "tells of", "era", "open", "grown", "--data", data, "--meta", meta)
}

// A suspended device is told of, and nothing waits for it.
func TestSuspendedDevice(t *testing.T) {
	d := create(t, "still", 64*kib)
	guest.Run(t, "dmsetup", "suspend", "still")
	defer guest.Run(t, "dmsetup", "resume", "still")
	if s := statusOf(t, "still"); !s.Suspended || s.Kernel != nil {
		t.Errorf("status: %+v", s)
	}
	if _, errs, code := tidemark(t, "era", "changes", "still", "--since", "0"); code != 7 {
		t.Errorf("changes: exit code %d, %s", code, errs)
	}
	if err := d.Checkpoint(t.Context()); err == nil {
		t.Error("a checkpoint of a suspended device")
	}
}

// A device that dmsetup made becomes ours while it is in use, and forgets nothing.
func TestAdopt(t *testing.T) {
	disk, meta := guest.Disk(t, "data"), guest.Disk(t, "meta")
	zero(t, meta)
	path := guest.Mapper(t, "theirs", fmt.Sprintf("0 %s era %s %s 128", guest.Sectors(t, disk), meta, disk))
	mount := mounted(t, path)
	s := statusOf(t, "theirs")
	if s.Identity != "" || s.Kernel.DiscardsDisabled || len(s.Warnings) == 0 {
		t.Errorf("status of another program's device: %+v, %+v", s, *s.Kernel)
	}
	d, err := dmera.Open(control(t), path, dmera.Options{})
	if err != nil {
		t.Fatal(err)
	}
	before := changes(t, d, 0)
	id, err := d.Adopt(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := d.Adopt(t.Context()); again != id || err != nil {
		t.Errorf("adopted again: %v, %v, want %v", again, err, id)
	}
	s = statusOf(t, "theirs")
	if s.Identity != id.String() || !s.Kernel.DiscardsDisabled {
		t.Errorf("status when adopted: %+v, %+v", s, *s.Kernel)
	}
	for _, e := range before.Extents() {
		if !changes(t, d, 0).Covers(e) {
			t.Errorf("%v is forgotten", e)
		}
	}
	snap, err := d.TakeSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := snap.Metadata().Superblock().Identity; got != id {
		t.Errorf("identity in the snapshot %v, want %v", got, id)
	}
	if err := snap.Close(); err != nil {
		t.Error(err)
	}
	d.Close()
	noDiscards(t, path)
	guest.Run(t, "umount", mount)
	works(t, "era", "close", "theirs")
	if sb := clean(t, meta); sb.Identity != id {
		t.Errorf("identity when closed %v, want %v", sb.Identity, id)
	}
	works(t, "era", "open", "theirs", "--data", disk, "--meta", meta)
	if s = statusOf(t, "theirs"); s.Identity != id.String() {
		t.Errorf("identity when opened %v, want %v", s.Identity, id)
	}
}

// A discard of many blocks is let through by a device of another program, and told
// of; dm-era has marked its first block only.
func TestDiscardsThatAreLetThrough(t *testing.T) {
	disk, meta := guest.Disk(t, "data"), guest.Disk(t, "meta")
	zero(t, meta)
	path := guest.Mapper(t, "theirs", fmt.Sprintf("0 %s era %s %s 128", guest.Sectors(t, disk), meta, disk))
	guest.Run(t, "blkdiscard", "-o", fmt.Sprint(mib), "-l", fmt.Sprint(10*mib), path)
	s := statusOf(t, "theirs")
	if s.Kernel.Discards == 0 || len(s.Warnings) < 2 {
		t.Errorf("status after a discard: %+v, %+v", s, *s.Kernel)
	}
	d, err := dmera.Open(control(t), path, dmera.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	t.Logf("of 10 MiB discarded %d KiB are marked", changes(t, d, era.Era(1)).Bytes()/kib)

	// A list that lacks them is not given: neither while discards are on, nor after,
	// and not after the device was taken down and brought up either.
	lacks := func(when, since string, code int) string {
		t.Helper()
		_, errs, got := tidemark(t, "era", "changes", path, "--since", since)
		if got != code || code != 0 && !strings.Contains(errs, "discards were let through") {
			t.Errorf("%s: changes since %s: exit code %d, want %d\n%s", when, since, got, code, errs)
		}
		return errs
	}
	lacks("on", "1", 4)
	if _, errs, code := tidemark(t, "era", "open", "theirs", "--data", disk, "--meta", meta); code != 0 || !strings.Contains(errs, "discards") || !strings.Contains(errs, "identity") {
		t.Errorf("open: exit code %d, %s", code, errs)
	}
	if s = statusOf(t, "theirs"); s.Identity == "" || !s.Kernel.DiscardsDisabled {
		t.Errorf("status when opened: %+v, %+v", s, *s.Kernel)
	}
	said := lacks("off again", "1", 4)
	_, said, _ = strings.Cut(said, "ask from era ")
	next := strings.TrimSpace(said)
	lacks("after a full copy", next, 0)
	lacks("after a full copy", "1", 4)
	works(t, "era", "close", "theirs")
	works(t, "era", "open", "theirs", "--data", disk, "--meta", meta)
	lacks("closed and opened", "1", 4)
	lacks("closed and opened", next, 0)
}

// An era is of the metadata that it was read from; another table that waits is never
// put in the place of the era device's.
func TestChangesAskTheRightMetadata(t *testing.T) {
	d := create(t, "asked", 64*kib)
	id := statusOf(t, "asked").Identity
	works(t, "era", "changes", "asked", "--since", "1", "--identity", id)
	other := strings.Repeat("ab", len(id)/2)
	if _, errs, code := tidemark(t, "era", "changes", "asked", "--since", "1", "--identity", other); code != 4 || !strings.Contains(errs, "made anew") {
		t.Errorf("another identity: exit code %d, %s", code, errs)
	}
	if _, _, code := tidemark(t, "era", "changes", "asked", "--since", "1", "--identity", "x"); code != 2 {
		t.Errorf("no identity: exit code %d", code)
	}
	guest.Run(t, "dmsetup", "load", "asked", "--table", "0 2048 linear "+guest.Disk(t, "other")+" 0")
	refuses(t, "dmsetup clear", "era", "changes", "asked", "--since", "1")
	if _, err := d.Drain(t.Context()); !errors.Is(err, dmera.ErrRefused) {
		t.Errorf("drain with another table: %v", err)
	}
	guest.Run(t, "dmsetup", "clear", "asked")
	works(t, "era", "changes", "asked", "--since", "1")
}

// mounted makes an ext4 on a device and mounts it.
func mounted(t testing.TB, device string) string {
	t.Helper()
	guest.Run(t, "mkfs.ext4", "-q", "-F", "-E", "nodiscard", device)
	dir := t.TempDir()
	guest.Run(t, "mount", device, dir)
	t.Cleanup(func() {
		if _, err := os.Stat(filepath.Join(dir, "lost+found")); err == nil {
			guest.Run(t, "umount", dir)
		}
	})
	return dir
}

// noDiscards fails when the device takes discards, mounted or not.
func noDiscards(t testing.TB, device string) {
	t.Helper()
	if out, err := output("blkdiscard", "-f", "-o", fmt.Sprint(16*mib), "-l", fmt.Sprint(mib), device); err == nil {
		t.Errorf("%s took a discard\n%s", device, out)
	}
}
