package dm

import (
	"strings"
	"testing"
)

// What libdevmapper writes for each name in its mode "auto", "" where it refuses.
func TestNamesAreMangledAsLibdevmapperDoes(t *testing.T) {
	for name, want := range map[string]string{
		"plain": "plain", "vg-lv--x": "vg-lv--x", "#+-.:=@_": "#+-.:=@_", "a b": `a\x20b`, "ä": `\xc3\xa4`,
		`a\x20b`: `a\x20b`, `back\slash`: `back\x5cslash`, "~": `\x7e`,
		`a b\x20`: "", `a\x2`: "", `a\xzz`: "", `a\x41`: "", `\x5cx20`: `\x5cx20`,
	} {
		got, err := mangle(name)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q became %q (%v), want %q", name, got, err, want)
		}
	}
}

func TestNamesThatAreRefused(t *testing.T) {
	for _, name := range []string{"", "a/b", "/dev/mapper/x", "a\x00", ".", "..", "control", strings.Repeat("x", 128), strings.Repeat(" ", 32)} {
		if kernel, err := checkName(name); err == nil {
			t.Errorf("%q was taken as %q", name, kernel)
		}
	}
	if _, err := checkName(strings.Repeat("x", 127)); err != nil {
		t.Error(err)
	}
	if _, err := checkUUID(strings.Repeat("x", 129)); err == nil {
		t.Error("a UUID of 129 bytes was taken")
	}
	if _, err := checkUUID(strings.Repeat("x", 128)); err != nil {
		t.Error(err)
	}
}

// A name from the kernel leads back to what the kernel has.
func FuzzNamesLeadBack(f *testing.F) {
	for _, s := range []string{"a", "a b", `a\x20b`, `\x5cx20`, `\x5c`, `\x2F`, `\xzz`, "ä", "\x00", `\`, `\x`, `\x+1`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, kernel string) {
		read := demangle(kernel)
		if read != kernel {
			if back, err := mangle(read); err != nil || back != kernel {
				t.Errorf("%q was read as %q, which is %q (%v) to the kernel", kernel, read, back, err)
			}
		}
		if written, err := mangle(kernel); err == nil {
			if again, err := mangle(written); err != nil || again != written {
				t.Errorf("%q became %q, and then %q (%v)", kernel, written, again, err)
			}
		}
	})
}
