package boot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/linux/dm"
	"tidemark/linux/dmera"
)

// What cannot be asked for, and what is not open, is written down, also without its
// metadata. Open devices are there in test/vm alone.
func TestABootPastAnEraDeviceIsNoted(t *testing.T) {
	e := Entry{Name: "tidemark-none", Data: "/dev/mapper/none-a", Meta: "/dev/mapper/none-b", Stage: StageInitramfs}
	said := ""
	o := Opener{Options: dmera.Options{StateDir: t.TempDir()}, Log: func(_ Entry, done string) { said = done }}
	if err := o.Open(t.Context(), []Entry{e}); !errors.Is(err, ErrNotOpen) {
		t.Errorf("open: %v", err)
	}
	err := o.Note(t.Context(), []Entry{e})
	if _, failed := dm.Open(); failed != nil && !errors.Is(err, ErrNotOpen) || failed == nil && err != nil {
		t.Errorf("note: %v; device-mapper: %v", err, failed)
	}
	noted, _ := filepath.Glob(filepath.Join(o.Options.StateDir, "era", "*"))
	if len(noted) != 1 || !strings.Contains(said, "not open") {
		t.Errorf("written down: %v, said: %q", noted, said)
	}
}

func TestHibernationIsFound(t *testing.T) {
	for _, c := range []struct{ command, device, want string }{
		{"ro quiet", "0:0", ""},
		{"ro quiet", "", ""}, // the kernel does not hibernate
		{"ro quiet resume=/dev/sda3", "0:0", "resume="},
		{"ro resume=UUID=2 noresume", "8:3", ""},
		{"ro noresume", "8:3", ""},
		{"ro init=/bin/noresume notresume=1", "8:3", "8:3"},
		{"ro quiet", "8:3", "8:3"},
	} {
		err := resumes(strings.Fields(c.command), c.device)
		if (err != nil) != (c.want != "") || err != nil && (!errors.Is(err, ErrHibernation) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q, %q: %v, want %q", c.command, c.device, err, c.want)
		}
	}
}

func TestAHibernatedSystemIsSeen(t *testing.T) {
	swap := filepath.Join(t.TempDir(), "swap")
	for _, magic := range []string{"S1SUSPEND", "SWAPSPACE2"} {
		b := make([]byte, os.Getpagesize())
		copy(b[len(b)-10:], magic)
		if err := os.WriteFile(swap, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := isHibernated(swap); got != (magic == "S1SUSPEND") {
			t.Errorf("%s: %v", magic, got)
		}
	}
}
