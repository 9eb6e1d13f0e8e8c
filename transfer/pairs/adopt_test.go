package pairs_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"tidemark/linux/mounts/mountstest"
	"tidemark/transfer/pairs"
	"tidemark/transfer/target"
)

// Two filesystems that were just made hold the same in most places, whatever is compared.
func TestAnotherFilesystemIsNoOlderCopy(t *testing.T) {
	source, other, older := mountstest.Image(t, 64*mib), mountstest.Image(t, 64*mib), mountstest.Image(t, 64*mib)
	mountstest.Mkfs(t, "ext4", source)
	mountstest.Mkfs(t, "ext4", other)
	mountstest.Run(t, "cp", source, older)
	o := quiet(t.TempDir())
	o.Adopt = true
	before, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	adopt := func(image string) error {
		_, err := pairs.Mirror(t.Context(), []pairs.Pair{{Source: source, Target: image}}, o)
		return err
	}
	if err := adopt(other); !errors.Is(err, target.ErrHoldsOther) || !strings.Contains(err.Error(), "no older copy") {
		t.Errorf("another filesystem: %v", err)
	}
	if after, err := os.ReadFile(other); err != nil || !bytes.Equal(after, before) {
		t.Errorf("it was changed (%v)", err)
	}
	if err := adopt(older); err != nil {
		t.Errorf("an older copy: %v", err)
	}
}

func TestADiskWithAnotherFilesystemInAPartitionIsNoOlderCopy(t *testing.T) {
	source, parts := mountstest.Partitioned(t, 64*mib, 1)
	other, theirs := mountstest.Partitioned(t, 64*mib, 1)
	mountstest.Run(t, "dd", "if="+source, "of="+other, "bs=1M", "status=none") // the same table
	mountstest.Mkfs(t, "ext4", parts[0])
	mountstest.Mkfs(t, "ext4", theirs[0])
	o := quiet(t.TempDir())
	o.Adopt = true
	_, err := pairs.Mirror(t.Context(), []pairs.Pair{{Source: source, Target: other}}, o)
	if !errors.Is(err, target.ErrHoldsOther) || !strings.Contains(err.Error(), "no older copy") || !strings.Contains(err.Error(), "ext filesystem") {
		t.Error(err)
	}
}
