package adopt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidemark/block"
	"tidemark/linux/mounts"
	"tidemark/linux/mounts/mountstest"
)

const size = 128 << 20

// The devices that can be adopted, and what becomes of them, are in test/vm: of loop devices
// all but their kind is judged here.
func judge(t *testing.T, path string) error {
	t.Helper()
	id, err := block.Identify(path)
	if err != nil {
		t.Fatal(err)
	}
	id.Disk = "sda"
	if err := judgeDevice(path, id); err != nil {
		return err
	}
	return judgeUse(path, id)
}

func TestOnlyAPlainDeviceOfItsOwnIsAdopted(t *testing.T) {
	disk, parts := mountstest.Partitioned(t, 2*size, 2)
	if _, err := Judge(t.Context(), parts[0], ""); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "loop") {
		t.Errorf("a loop device: %v", err)
	}
	if _, err := Judge(t.Context(), t.TempDir(), ""); !errors.Is(err, block.ErrNotBlockDevice) {
		t.Errorf("a folder: %v", err)
	}
	for path, want := range map[string]string{disk: strings.Join(parts, ", "), parts[0]: ""} {
		if err := judge(t, path); (err != nil) != (want != "") || err != nil && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	mountstest.Mkfs(t, "ext4", parts[0])
	if err := judge(t, parts[0]); err != nil {
		t.Errorf("ext4: %v", err)
	}
	mountstest.Mount(t, parts[0])
	if err := judge(t, parts[0]); err != nil {
		t.Errorf("mounted: %v", err)
	}
	locked := mountstest.Disk(t, size)
	mountstest.Run(t, "blockdev", "--setro", locked)
	t.Cleanup(func() { mountstest.Run(t, "blockdev", "--setrw", locked) }) // the next user of the loop device
	swap := mountstest.Disk(t, size)
	mountstest.Run(t, "mkswap", "-q", swap)
	pv := mountstest.Disk(t, size)
	f, err := os.OpenFile(pv, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte("LABELONE\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x20\x00\x00\x00LVM2 001"), 512)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	luks := mountstest.Disk(t, size)
	mountstest.Run(t, "sh", "-c", "echo secret | cryptsetup luksFormat --batch-mode --pbkdf pbkdf2 --pbkdf-force-iterations 1000 "+luks+" -")
	one, two := mountstest.Disk(t, size), mountstest.Disk(t, size)
	mountstest.Mkfs(t, "btrfs", one, two)
	for path, want := range map[string]string{
		locked: "read-only", swap: "swap", pv: "LVM2_member", luks: "crypto_LUKS", one: "lies on 2 devices",
	} {
		if err := judge(t, path); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	mountstest.Mount(t, one)
	if err := judge(t, two); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "lies on 2 devices") {
		t.Errorf("a mounted btrfs: %v", err)
	}
}

func TestSettingsThatNameThePlainDeviceAreFound(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{
		"etc/fstab":                     "# /dev/x\n/dev/x / ext4 defaults 0 1\nUUID=1 /x ext4\n\nLABEL=a /dev/x\n/dev/x\\040y /y\n",
		"etc/crypttab":                  "swap /dev/x /dev/urandom swap\nother /dev/y\n",
		"etc/systemd/system/srv.mount":  "[Mount]\nWhat=/dev/x\nWhere=/srv\n",
		"etc/systemd/system/none.mount": "[Mount]\nWhat=/dev/y\n",
		"etc/default/grub":              "GRUB_TIMEOUT=1\n#GRUB_CMDLINE_LINUX=\"root=/dev/x\"\nGRUB_CMDLINE_LINUX=\"quiet root=/dev/x\"\n",
		"boot/grub/grub.cfg":            "menuentry {\n  linux /vmlinuz root=UUID=1 ro\n  linux /vmlinuz root=/dev/disk/by-path/x noroot=/dev/x\n}\n",
		"boot/loader/entries/a.conf":    "options root=/dev/x\n",
		"proc/cmdline":                  "root=/dev/x\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	is := func(name string) bool { return name == "/dev/x" || name == "/dev/x y" || name == "/dev/disk/by-path/x" }
	found, err := search(root, is)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range found {
		rel, err := filepath.Rel(root, r.File)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s:%d %s %v", rel, r.Line, r.Name, r.Loader))
	}
	want := []string{
		"etc/fstab:2 /dev/x false", "etc/fstab:6 /dev/x y false", "etc/crypttab:1 /dev/x false", "etc/systemd/system/srv.mount:2 /dev/x false",
		"etc/default/grub:3 /dev/x true", "boot/grub/grub.cfg:3 /dev/disk/by-path/x false", "boot/loader/entries/a.conf:1 /dev/x true",
	}
	if !slices.Equal(got, want) {
		t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// What the running kernel was told counts where no file of a boot loader names a root.
	if err := os.RemoveAll(filepath.Join(root, "boot")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(root, "etc/default/grub")); err != nil {
		t.Fatal(err)
	}
	found, err = search(root, is)
	if err != nil || len(found) != 5 || found[4].File != filepath.Join(root, "proc/cmdline") {
		t.Errorf("%v, %v", found, err)
	}
}

func TestNamesThatALinearDeviceTakesOverAreNoPlainNames(t *testing.T) {
	disk := mountstest.Disk(t, size)
	dev, err := mounts.DeviceOf(disk)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		disk: true, "/dev/../" + disk: true, "UUID=1": false, "LABEL=x": false, "PARTUUID=1": false, "PARTLABEL=nowhere": false,
		"/dev/disk/by-uuid/1": false, "/dev/null": false, "tmpfs": false, "": false,
	} {
		if got := leadsTo(name, dev); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
