package blkid

import (
	"errors"
	"slices"
	"testing"

	"tidemark/linux/mounts/mountstest"
)

// Labels are what people type: blanks, quotes, other alphabets.
func TestADeviceIsFoundByItsTags(t *testing.T) {
	const label = `a "b\c$ ä`
	const shown = `a "b\c$ M-CM-$`
	disk := mountstest.Disk(t, 16<<20)
	mountstest.Run(t, "mkfs.ext4", "-q", "-F", "-L", label, "-U", "5ca1ab1e-0000-4000-8000-00000000beef", disk)
	for _, tag := range []Tag{{Label, label}, {UUID, "5ca1ab1e-0000-4000-8000-00000000beef"}, {UUID, "5CA1AB1E-0000-4000-8000-00000000BEEF"}} {
		found, err := Find(t.Context(), tag)
		if err != nil || len(found) != 1 || found[0].Path != disk || found[0].Type != "ext4" {
			t.Errorf("%s: %+v, %v", tag, found, err)
		}
	}
	if found, err := Find(t.Context(), Tag{Label, "of none"}); err != nil || len(found) > 0 {
		t.Errorf("a label of none: %+v, %v", found, err)
	}
	all, err := List(t.Context())
	if err != nil || !slices.ContainsFunc(all, func(d Device) bool { return d.Path == disk && d.Label == shown }) {
		t.Errorf("it is not listed: %+v, %v", all, err)
	}
}

func TestAPartitionIsFoundByItsTags(t *testing.T) {
	disk, parts := mountstest.Partitioned(t, 32<<20, 1)
	mountstest.Run(t, "sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--part-label", disk, "1", "of a test")
	mountstest.Run(t, "sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--part-uuid", disk, "1", "5ca1ab1e-0000-4000-8000-00000000cafe")
	for _, tag := range []Tag{{PartLabel, "of a test"}, {PartUUID, "5CA1AB1E-0000-4000-8000-00000000CAFE"}} {
		found, err := Find(t.Context(), tag)
		if err != nil || len(found) != 1 || found[0].Path != parts[0] {
			t.Errorf("%s: %+v, %v", tag, found, err)
		}
	}
}

func TestOutputThatIsNotKnownIsRefused(t *testing.T) {
	for _, out := range []string{"/dev/sda1: UUID=\"1\"\n", "UUID=1\nDEVNAME=/dev/sda1\n", "DEVNAME=/dev/sda1\nLABEL=a\\\n"} {
		if found, err := parse(out); err == nil {
			t.Errorf("%q: %+v", out, found)
		}
	}
}

func TestAMissingProgramIsNamed(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := find(); err != nil && !errors.Is(err, ErrMissing) {
		t.Error(err)
	}
}

func TestOnlyTagsAreTags(t *testing.T) {
	for name, want := range map[string]bool{
		"UUID=1": true, "LABEL=a=b": true, "PARTUUID=1": true, "PARTLABEL=x": true,
		"LABEL=": true, "LABEL": false, "./LABEL=x": false, "/dev/vdb1": false, "label=x": false, "ID=1": false,
	} {
		if tag, ok := ParseTag(name); ok != want || ok && tag.String() != name {
			t.Errorf("%s: %v, %v", name, tag, ok)
		}
	}
}
