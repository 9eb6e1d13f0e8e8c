package boot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// installed returns a system with the entry "root", and its folder.
func installed(t *testing.T) (*System, string) {
	t.Helper()
	s, dir := newSystem(t)
	put(t, dir, "usr/bin/tidemark", "program", 0o755)
	put(t, dir, "usr/bin/tidemark-boot", "its part for an initramfs", 0o755)
	if err := install(t, s, false, entry("root")); err != nil {
		t.Fatal(err)
	}
	return s, dir
}

// An image is current while nothing that it is made of has changed. That the hooks write
// the stamp, and that the tools of both generators list it, is seen where a Debian boots
// (test/vm).
func TestAnImageIsCurrentStaleOrWithout(t *testing.T) {
	s, dir := installed(t)
	module, table := "usr/lib/modules/1/kernel/drivers/md/dm-era.ko.xz", inside(TabPath)
	for _, g := range []Generator{InitramfsTools, Dracut} {
		made, err := s.stamp("/usr/bin/tidemark", g)
		if err != nil || made == "" {
			t.Fatal(made, err)
		}
		for _, c := range []struct {
			what   string
			names  []string
			module string
			want   ImageState
		}{
			{"as installed", []string{"sbin/init", module, table, made}, "dm-era", ImageCurrent},
			{"built in", []string{table, made}, "", ImageCurrent},
			{"no module", []string{table, made}, "dm-era", ImageWithout},
			{"no table", []string{module}, "dm-era", ImageWithout},
			{"made by an older tidemark", []string{module, table}, "dm-era", ImageStale},
			{"made of other files", []string{module, table, stampName + strings.Repeat("0", 64)}, "dm-era", ImageStale},
		} {
			if got, why := judge(c.names, []string{"", made}, c.module); got != c.want || (why == "") != (got == ImageCurrent) {
				t.Errorf("%s, %s: %s (%s), want %s", g, c.what, got, why, c.want)
			}
		}
		for _, name := range sources("/usr/bin/tidemark", g) {
			path := filepath.Join(dir, name)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			put(t, dir, name, string(before)+"\n", 0o755)
			if now, err := s.stamp("/usr/bin/tidemark", g); err != nil || now == made {
				t.Errorf("%s: with a changed %s it is %s still (%v)", g, name, now, err)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if now, err := s.stamp("/usr/bin/tidemark", g); err != nil || now != "" {
				t.Errorf("%s: without %s: %q, %v", g, name, now, err)
			}
			put(t, dir, name, string(before), 0o755)
		}
	}
}

func TestAModuleMayBeBuiltIntoTheKernelOfAnImage(t *testing.T) {
	s, dir := newSystem(t)
	put(t, dir, "lib/modules/6.1-x/modules.builtin", "kernel/drivers/md/dm-era.ko\n", 0o644)
	put(t, dir, "lib/modules/6.1/modules.builtin", "kernel/drivers/md/dm-mod.ko\n", 0o644)
	for image, want := range map[string]bool{
		"initrd.img-6.1-x": true, "initramfs-6.1-x.img": true, "initrd-6.1-x": true,
		"initrd.img-6.1": false, "initramfs-6.2.img": false,
	} {
		if got := s.builtin(image, "dm-era"); got != want {
			t.Errorf("%s: %v", image, got)
		}
	}
}
