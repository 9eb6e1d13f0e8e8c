package era

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func restoreXML(t testing.TB, xml string, blocks int) []byte {
	t.Helper()
	image := make(memory, blocks*BlockSize)
	if err := Restore(strings.NewReader(xml), image, int64(len(image))); err != nil {
		t.Fatal(err)
	}
	mustBeSound(t, image)
	return image
}

func TestRestoreIsReadByTools09(t *testing.T) {
	for _, c := range goodCases(t) {
		if !c.has("dump.xml.zst") {
			continue // c12 has 10^8 lines
		}
		t.Run(c.name, func(t *testing.T) {
			want, err := dumpXML(c.open(t).Live(), DumpOptions{})
			if err != nil {
				t.Fatal(err)
			}
			image := restoreXML(t, want, 2*len(c.image)/BlockSize)
			if got, err := dumpXML(openBytes(t, image).Live(), DumpOptions{}); err != nil || got != want {
				t.Fatalf("our dump of our restore differs (%v)", err)
			}
			path := writeFile(t, image)
			if got := mustTool(t, "era_dump", path); got != want {
				t.Error("era_dump prints something else")
			}
			if out := mustTool(t, "era_check", path); strings.Contains(out, "error") {
				t.Error(out)
			}
		})
	}
}

func TestRestoreByTools09IsRead(t *testing.T) {
	for _, name := range []string{"c01-bs8-64m-snap.clean", "c06-bs1000-odd.live-snap", "c17-300-writesets-restored09"} {
		c := theCaseNamed(t, name)
		want := string(c.file(t, "dump.xml.zst"))
		image := writeFile(t, make([]byte, 2*len(c.image)))
		mustTool(t, "era_restore", "-q", "-i", writeFile(t, []byte(want)), "-o", image)
		got, err := dumpXML(openFile(t, image).Live(), DumpOptions{})
		if err != nil || got != want {
			t.Errorf("%s: our dump of era_restore's image differs (%v)", name, err)
		}
	}
}

func TestRestoreUnderstandsTools1(t *testing.T) {
	const form = `<?xml version="1.0"?>
<!-- of 1.x --><superblock uuid='' block_size = "8" nr_blocks="200" current_era="3"><writeset era="3" nr_bits="200">
<marked block_begin="62" len="70"/><marked block_begin="199" len="1"/></writeset>
<writeset era="2" nr_bits="200"/><era_array><era block="7" era="1"/></era_array></superblock>`
	v := openBytes(t, restoreXML(t, form, 64)).Live()
	got, err := changedXML(v, Query{Since: 1})
	if err != nil {
		t.Fatal(err)
	}
	const want = "<blocks>\n  <block block=\"7\"/>\n  <range begin=\"62\" end = \"132\"/>\n  <block block=\"199\"/>\n</blocks>\n"
	if got != want {
		t.Errorf("got %s want %s", got, want)
	}
}

func TestRestoreRefusesAndLeavesNoMetadata(t *testing.T) {
	const head = `<superblock uuid="" block_size="8" nr_blocks="10" current_era="3">`
	const array = `<era_array><era block="0" era="1"/></era_array>`
	for _, x := range []string{
		"", "<superblock", "<blocks></blocks>", head, head + array, head + "</superblock>",
		head + array + "</superblock>x", head + array + "</superblock><a/>", head + array + array + "</superblock>",
		`<superblock uuid="" block_size="7" nr_blocks="10" current_era="3">` + array + "</superblock>",
		`<superblock uuid="" block_size="8" nr_blocks="2147483648" current_era="3">` + array + "</superblock>",
		`<superblock uuid="" block_size="8" nr_blocks="-1" current_era="3">` + array + "</superblock>",
		`<superblock uuid="" block_size="8" nr_blocks="18446744073709551617" current_era="3">` + array + "</superblock>",
		`<superblock uuid="12345678901234567" block_size="8" nr_blocks="10" current_era="3">` + array + "</superblock>",
		head + `<era_array><era block="10" era="1"/></era_array></superblock>`,
		head + `<era_array><era block="1" era="1"/><era block="1" era="1"/></era_array></superblock>`,
		head + `<era_array><era block="1" era="4"/></era_array></superblock>`,
		head + `<era_array><era block="1" era="1"></era></era_array></superblock>`,
		head + `<writeset era="4" nr_bits="10"></writeset>` + array + "</superblock>",
		head + `<writeset era="1" nr_bits="10"></writeset><writeset era="1" nr_bits="10"></writeset>` + array + "</superblock>",
		head + `<writeset era="1" nr_bits="10"><bit block="10" value="true"/></writeset>` + array + "</superblock>",
		head + `<writeset era="1" nr_bits="10"><bit block="1" value="1"/></writeset>` + array + "</superblock>",
		head + `<writeset era="1" nr_bits="10"></writeset><era_array><era block="1" era="2"/></era_array></superblock>`,
		head + array + `<writeset era="1" nr_bits="10"></writeset></superblock>`,
	} {
		image := make(memory, 64*BlockSize)
		err := Restore(strings.NewReader(x), image, int64(len(image)))
		if !errors.Is(err, ErrXML) {
			t.Errorf("%q: %v, want ErrXML", x, err)
		}
		if _, err := Open(bytes.NewReader(image), int64(len(image))); !errors.Is(err, ErrNotEra) {
			t.Errorf("%q left metadata behind: %v", x, err)
		}
	}
}

func TestRestoreFailsWhenTargetIsTooSmall(t *testing.T) {
	c := theCaseNamed(t, "c01-bs8-64m-snap.clean")
	xml := string(c.file(t, "dump.xml.zst"))
	for blocks := range 40 {
		image := make(memory, blocks*BlockSize)
		err := Restore(strings.NewReader(xml), image, int64(len(image)))
		if err == nil {
			t.Logf("fits in %d blocks", blocks)
			return
		}
		if !errors.Is(err, ErrNoSpace) {
			t.Fatalf("%d blocks: %v, want ErrNoSpace", blocks, err)
		}
	}
	t.Error("does not fit in 40 blocks")
}
