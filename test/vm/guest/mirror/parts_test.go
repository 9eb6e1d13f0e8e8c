//go:build linux

package mirror_test

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/test/vm/guest"
)

// planned wants a dry run to go well, or to be refused with all of these words.
func planned(t *testing.T, source string, words ...string) {
	t.Helper()
	refused(t, []string{"mirror", "-n", source, filepath.Join(t.TempDir(), "x.img")}, words...)
}

// refused wants a command of tidemark to be refused (6) with all of these words, or, where
// there are none, to go well.
func refused(t *testing.T, args []string, words ...string) {
	t.Helper()
	out, err := exec.Command("tidemark", args...).CombinedOutput()
	code := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	}
	if (code == 0) != (len(words) == 0) || code != 0 && code != 6 {
		t.Errorf("tidemark %v: exit code %d\n%s", args, code, out)
	}
	for _, word := range words {
		if !strings.Contains(string(out), word) {
			t.Errorf("tidemark %v does not say %q\n%s", args, word, out)
		}
	}
}

// advised wants "tidemark doctor" to say so of a device.
func advised(t *testing.T, device, text string) {
	t.Helper()
	_, found, _ := strings.Cut(guest.Run(t, "tidemark", "doctor"), "\n"+device+" ")
	found, _, _ = strings.Cut(found, "\n/dev/")
	if !strings.Contains(found, text) {
		t.Errorf("of %s: %q, which does not say %q", device, found, text)
	}
}

// A device that others are made of is no source alone, and it is said what is one.
func TestAPartOfAStackIsNoSource(t *testing.T) {
	data, scsi := guest.Disk(t, "data"), guest.Disk(t, "scsi")
	t.Run("md", func(t *testing.T) {
		md := guest.Array(t, "raid1", data, scsi)
		guest.Run(t, "wipefs", "-aq", md)
		command(t, mkfsExt4, md)
		mount := t.TempDir()
		guest.Run(t, "mount", md, mount)
		defer guest.Run(t, "umount", mount)
		planned(t, data, "needs "+scsi, "name "+md+" instead", mount)
		planned(t, scsi, "needs "+data)
		planned(t, md)
		planned(t, mount)
		advised(t, data, "name "+md+", on top")
	})
	t.Run("LVM", func(t *testing.T) {
		const group = "LVM-0123456789abcdef0123456789abcdef"
		volume := func(name, table string) string {
			guest.Run(t, "dmsetup", "create", name, "--uuid", group+name, "--table", table)
			t.Cleanup(func() { guest.Run(t, "dmsetup", "remove", "--retry", name) })
			return "/dev/mapper/" + name
		}
		alone := volume("vg-alone", "0 8192 linear "+data+" 0")
		planned(t, data)
		volume("vg-other", "0 8192 linear "+scsi+" 0")
		planned(t, data, "needs "+scsi, "volume group")
		both := volume("vg-both", "0 8192 linear "+data+" 8192\n8192 8192 linear "+scsi+" 8192")
		planned(t, data, "needs "+scsi, "name "+both+" instead")
		planned(t, both)
		planned(t, alone)
	})
	t.Run("crypt", func(t *testing.T) {
		top := crypt(t)
		planned(t, data)
		advised(t, data, "name "+top+", on top")
	})
	t.Run("era", func(t *testing.T) {
		guest.Run(t, "tidemark", "era", "create", "whole", "--data", data, "--meta", scsi, "--force")
		defer guest.Run(t, "tidemark", "era", "close", "whole")
		guest.Run(t, "mkfs.ext4", "-q", "-L", "whole", "/dev/mapper/whole")
		planned(t, data)
		planned(t, "LABEL=whole") // both carry it, and one lies on the other
		advised(t, "/dev/mapper/whole", "after a reboot as well")
	})
}
