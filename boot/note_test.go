package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// kernel is one whose era device of that name is open over two devices, or is not.
type kernel struct {
	Kernel
	data, meta string // "" for not open
	fails      error  // of Active
	calls      []string
}

func (k *kernel) Active(string) (data, meta string, err error) {
	if k.fails != nil {
		return "", "", k.fails
	}
	if k.data == "" {
		err = ErrNotOpen
	}
	return k.data, k.meta, err
}

func (k *kernel) Open(_ context.Context, name, _, _ string) error {
	k.calls = append(k.calls, "open "+name)
	return nil
}

func (k *kernel) Note(_ context.Context, name string) error {
	k.calls = append(k.calls, "note "+name)
	return nil
}

func (k *kernel) NotePast(name, meta string) error {
	k.calls = append(k.calls, fmt.Sprint("past ", name, " ", meta))
	return nil
}

// TestABootPastAnEraDeviceIsNoted asks for an open device, one that is not, and one
// that is open over others.
func TestABootPastAnEraDeviceIsNoted(t *testing.T) {
	e := Entry{Name: "root", Data: "/dev/mapper/a", Meta: "/dev/mapper/b", Stage: StageInitramfs}
	for _, c := range []struct {
		kernel kernel
		want   string
	}{
		{kernel{}, "past root /dev/mapper/b"},
		{kernel{data: "/dev/null", meta: "/dev/null"}, "past root /dev/mapper/b"},
	} {
		said := ""
		o := Opener{Kernel: &c.kernel, Log: func(_ Entry, done string) { said = done }}
		if err := o.Note(t.Context(), []Entry{e}); err != nil {
			t.Error(err)
		}
		if got := strings.Join(c.kernel.calls, ", "); got != c.want || !strings.Contains(said, "not open") {
			t.Errorf("%q, said %q; want %q", got, said, c.want)
		}
	}
}

// TestADeviceThatCannotBeAskedForIsNoted has a kernel without device-mapper.
func TestADeviceThatCannotBeAskedForIsNoted(t *testing.T) {
	e := Entry{Name: "root", Data: "/dev/mapper/a", Meta: "/dev/mapper/b", Stage: StageInitramfs}
	k := &kernel{fails: errors.New("no device-mapper")}
	err := Opener{Kernel: k}.Note(t.Context(), []Entry{e})
	if got := strings.Join(k.calls, ", "); got != "past root /dev/mapper/b" || !errors.Is(err, k.fails) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestAnOpenDeviceIsSeenTo makes sure that an open device takes no discards: Open of
// the kernel does that. It needs two block devices of any kind.
func TestAnOpenDeviceIsSeenTo(t *testing.T) {
	data, meta := blockDevices(t)
	e := Entry{Name: "root", Data: data, Meta: meta, Stage: StageInitramfs}
	k := &kernel{data: data, meta: meta}
	o := Opener{Kernel: k}
	if err := errors.Join(o.Open(t.Context(), []Entry{e}), o.Note(t.Context(), []Entry{e})); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(k.calls, ", "); got != "open root, note root" {
		t.Errorf("%q", got)
	}
}

func blockDevices(t *testing.T) (a, b string) {
	t.Helper()
	all, err := filepath.Glob("/dev/loop[0-9]*")
	if err != nil || len(all) < 2 {
		t.Fatalf("two loop devices are needed: losetup -f makes them (%v)", err)
	}
	return all[0], all[1]
}

func TestHibernationIsFound(t *testing.T) {
	swap := "UUID=1 / ext4 defaults 0 1\nUUID=2 none swap sw 0 0\n"
	for _, c := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"nothing", nil, ""},
		{"no swap", map[string]string{"etc/fstab": "UUID=1 / ext4 defaults 0 1\n#UUID=2 none swap sw 0 0\n"}, ""},
		{"a swap file", map[string]string{"etc/fstab": "/swapfile none swap sw 0 0\n"}, ""},
		{"a swap device", map[string]string{"etc/fstab": swap}, "fstab"},
		{"given up in initramfs-tools", map[string]string{"etc/fstab": swap, "etc/initramfs-tools/conf.d/resume": "RESUME=none\n"}, ""},
		{"given up in GRUB", map[string]string{"etc/fstab": swap, "etc/default/grub": "GRUB_CMDLINE_LINUX=\"noresume\"\n"}, ""},
		{"given up in GRUB's comment", map[string]string{"etc/fstab": swap, "etc/default/grub": "# say \"noresume\" here\nGRUB_CMDLINE_LINUX=\"quiet\" # not noresume\n"}, "fstab"},
		{"given up in GRUB behind a sign", map[string]string{"etc/fstab": swap, "etc/default/grub": "# don't\nGRUB_CMDLINE_LINUX=\"a=b #c noresume\"\n"}, ""},
		{"asked for in GRUB's comment", map[string]string{"etc/default/grub": "#GRUB_CMDLINE_LINUX=\"resume=/dev/sda3\"\n"}, ""},
		{"given up and then not", map[string]string{
			"etc/initramfs-tools/initramfs.conf": "RESUME=none\n", "etc/initramfs-tools/conf.d/resume": "RESUME=UUID=2\n",
		}, "conf.d/resume"},
		{"given up last", map[string]string{
			"etc/fstab": swap, "etc/initramfs-tools/conf.d/a": "RESUME=UUID=2", "etc/initramfs-tools/conf.d/b": "RESUME='none'",
		}, ""},
		{"given up in a file that dpkg left", map[string]string{
			"etc/initramfs-tools/conf.d/a": "RESUME=UUID=2\n", "etc/initramfs-tools/conf.d/a.dpkg-old": "RESUME=none\n", "etc/initramfs-tools/conf.d/b~": "RESUME=none\n",
		}, "conf.d/a names"},
		{"left to initramfs-tools, with swap", map[string]string{"etc/fstab": swap, "etc/initramfs-tools/conf.d/resume": "RESUME=auto\n"}, "fstab"},
		{"left to initramfs-tools, without", map[string]string{"etc/initramfs-tools/conf.d/resume": "RESUME=auto\n"}, ""},
		{"in another file", map[string]string{"etc/initramfs-tools/conf.d/zz": "RESUME=/dev/sda3\n"}, "conf.d/zz"},
		{"in initramfs-tools", map[string]string{"etc/initramfs-tools/conf.d/resume": "RESUME=UUID=2\n"}, "conf.d/resume"},
		{"in GRUB", map[string]string{"etc/default/grub": "GRUB_CMDLINE_LINUX=\"quiet resume=/dev/sda3\"\n"}, "resume="},
	} {
		s, dir := newSystem(t)
		for name, content := range c.files {
			put(t, dir, name, content, 0o644)
		}
		err := s.Hibernation()
		if (err != nil) != (c.want != "") || err != nil && (!errors.Is(err, ErrHibernation) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
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
