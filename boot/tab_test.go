package boot

import (
	"errors"
	"strings"
	"testing"
)

func entry(name string) Entry {
	return Entry{Name: name, Data: "PARTUUID=aa-" + hexOf(name) + "1", Meta: "/dev/disk/by-id/wwn-0x" + name, Stage: StageInitramfs}
}

// hexOf makes a part of a PARTUUID of a name.
func hexOf(name string) string {
	var b strings.Builder
	for _, c := range []byte(name) {
		b.WriteByte("0123456789abcdef"[c%16])
		b.WriteByte("0123456789abcdef"[c/16])
	}
	return b.String()
}

func TestATableKeepsWhatPeopleWroteBetweenItsLines(t *testing.T) {
	const before = "# mine\n\nroot  PARTUUID=aa-1\t/dev/mapper/vg-meta   initramfs,create=65536\n# end\n"
	table, err := ParseTab([]byte(before))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(table.Bytes()); got != before {
		t.Errorf("unchanged, it became\n%s", got)
	}
	root, err := table.Find("root")
	if err != nil || root.Create != 65536 || root.Stage != StageInitramfs || root.Meta != "/dev/mapper/vg-meta" {
		t.Fatalf("%+v, %v", root, err)
	}
	other := entry("srv")
	other.Stage = StageSystem
	changed, err := table.With(other)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(changed.Bytes()), before+other.line()+"\n"; got != want {
		t.Errorf("with another line it became\n%s\nwant\n%s", got, want)
	}
	root.Create = 0
	if changed, err = changed.With(root); err != nil {
		t.Fatal(err)
	}
	again, err := ParseTab(changed.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if e := again.Entries(); len(e) != 2 || e[0] != root || e[1] != other {
		t.Errorf("it reads as %+v", e)
	}
	if changed, err = changed.Without("root"); err != nil {
		t.Fatal(err)
	}
	if got := string(changed.Bytes()); got != "# mine\n\n# end\n"+other.line()+"\n" {
		t.Errorf("without root it became\n%s", got)
	}
	if _, err := changed.Without("root"); !errors.Is(err, ErrNoEntry) {
		t.Errorf("removed twice: %v", err)
	}
}

func TestATableRefusesWhatCouldOpenAnotherDisk(t *testing.T) {
	for _, line := range []string{
		"root /dev/sda2 PARTUUID=aa",
		"root PARTUUID=aa /dev/disk/by-path/pci-1",
		"root PARTUUID=aa PARTUUID=aa",
		"root PARTUUID=aa",
		"root PARTUUID=aa PARTUUID=bb initramfs more",
		"root PARTUUID=aa PARTUUID=bb later",
		"root PARTUUID=aa PARTUUID=bb create=5000",
		"root PARTUUID=aa PARTUUID=bb create=-4096",
		"ro/ot PARTUUID=aa PARTUUID=bb",
		"-root PARTUUID=aa PARTUUID=bb",
		"ro$ot PARTUUID=aa PARTUUID=bb",
		"root PARTUUID=a\"a PARTUUID=bb",
		"root /dev/disk/by-id/../../sda PARTUUID=bb",
		"root /dev/mapper/root PARTUUID=bb",
		strings.Repeat("n", 128) + " PARTUUID=aa PARTUUID=bb",
		"root PARTUUID=aa PARTUUID=bb\nroot PARTUUID=cc PARTUUID=dd",
		"root PARTUUID=aa PARTUUID=bb\nsrv PARTUUID=bb PARTUUID=dd",
		"root PARTUUID=aa PARTUUID=bb\nsrv PARTUUID=bb linear",
		"root PARTUUID=aa linear\nsrv PARTUUID=aa linear",
		"root PARTUUID=aa linear create=4096",
		"root linear PARTUUID=aa",
		"root PARTUUID=aa Linear",
	} {
		if table, err := ParseTab([]byte(line)); !errors.Is(err, ErrTab) {
			t.Errorf("%q: %v, %v", line, table.Entries(), err)
		}
	}
}

func FuzzTab(f *testing.F) {
	f.Add([]byte(tabHead + "root\tPARTUUID=aa\tPARTUUID=bb\tinitramfs,create=65536\n"))
	f.Add([]byte("a PARTUUID=aa linear system\nb PARTUUID=bb linear\n"))
	f.Add([]byte("a /dev/mapper/x /dev/disk/by-id/y -\r\n\n b"))
	f.Fuzz(func(t *testing.T, data []byte) {
		table, err := ParseTab(data)
		if err != nil {
			return
		}
		again, err := ParseTab(table.Bytes())
		if err != nil {
			t.Fatalf("what was written is refused: %v", err)
		}
		a, b := table.Entries(), again.Entries()
		if len(a) != len(b) {
			t.Fatalf("%d entries became %d", len(a), len(b))
		}
		for i := range a {
			if a[i] != b[i] {
				t.Errorf("%+v became %+v", a[i], b[i])
			}
		}
	})
}
