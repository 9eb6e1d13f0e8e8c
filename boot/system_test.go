package boot

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// newSystem makes a folder that looks like a system with both generators, and opens it.
func newSystem(t *testing.T) (*System, string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"usr/sbin/mkinitramfs", "usr/bin/dracut", "usr/lib/systemd/systemd"} {
		put(t, dir, name, "", 0o755)
	}
	s, err := OpenSystem(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, dir
}

func put(t *testing.T, dir, name, content string, mode fs.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// install applies a table.
func install(t *testing.T, s *System, force bool, entries ...Entry) error {
	t.Helper()
	var table Tab
	for _, e := range entries {
		var err error
		if table, err = table.With(e); err != nil {
			t.Fatal(err)
		}
	}
	plan, err := s.Plan(table, "/usr/bin/tidemark", force)
	if err != nil {
		t.Fatal(err)
	}
	return s.Apply(plan)
}

// tree is every file below a folder with its content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if d.Type()&fs.ModeSymlink != 0 {
			all[path], err = os.Readlink(path)
			return err
		}
		data, err := os.ReadFile(path)
		all[path] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func systemEntry(name string) Entry {
	e := entry(name)
	e.Stage = StageSystem
	return e
}

func linearEntry(name string) Entry {
	return Entry{Name: name, Data: "PARTUUID=aa-" + hexOf(name) + "1", Stage: StageSystem}
}

func TestWhatIsInstalledIsRemovedWithoutATrace(t *testing.T) {
	s, dir := newSystem(t)
	before := tree(t, dir)
	if err := install(t, s, false, entry("root"), systemEntry("srv")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"etc/tidemark/era.conf", "etc/udev/rules.d/61-tidemark-era.rules", "etc/initramfs-tools/hooks/tidemark-era",
		"etc/initramfs-tools/scripts/local-premount/tidemark-era", "usr/lib/dracut/modules.d/90tidemark-era/guard.sh",
		"etc/systemd/system/tidemark-era@srv.service.d/50-devices.conf",
		"etc/systemd/system/local-fs.target.requires/tidemark-era@srv.service",
	} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	for name, content := range tree(t, dir) {
		if strings.Contains(content, "@PROGRAM@") || strings.Contains(content, "@NAME@") || strings.Contains(content, "@DATALINK@") {
			t.Errorf("%s has a placeholder left", name)
		}
	}
	if err := install(t, s, false, systemEntry("srv")); err != nil {
		t.Fatal(err)
	}
	if s.has("/etc/initramfs-tools/hooks/tidemark-era", dracutDir) {
		t.Error("what the initramfs needed is still there")
	}
	if err := install(t, s, false); err != nil {
		t.Fatal(err)
	}
	after := tree(t, dir)
	for name := range after {
		if _, ok := before[name]; !ok {
			t.Errorf("%s was left", name)
		}
	}
	if len(after) < len(before) {
		t.Error("more was removed than installed")
	}
}

// The disk of root is tracked from the initramfs on, and saved by systemd's last program.
func TestTrackingOfRootIsInstalledAndRemovedWithoutATrace(t *testing.T) {
	s, dir := newSystem(t)
	const disk = "/dev/disk/by-id/virtio-system"
	table, err := Tab{}.WithTracked(disk, StageInitramfs)
	if err != nil {
		t.Fatal(err)
	}
	if parsed, err := ParseTab(table.Bytes()); err != nil || parsed.TrackedRoot() != disk || len(parsed.Entries()) != 0 {
		t.Errorf("%v, %v", parsed, err)
	}
	if _, err := table.WithTracked("/dev/disk/by-id/other", StageInitramfs); !errors.Is(err, ErrTab) {
		t.Errorf("root is on two disks: %v", err)
	}
	before := tree(t, dir)
	apply := func(table Tab) {
		t.Helper()
		plan, err := s.Plan(table, "/usr/bin/tidemark", false)
		if err == nil {
			err = s.Apply(plan)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	apply(table)
	for _, name := range []string{
		shutdownHook, "etc/initramfs-tools/scripts/local-premount/tidemark-era", dracutDir + "/guard.sh", "etc/udev/rules.d/61-tidemark-era.rules",
		`etc/systemd/system/local-fs.target.wants/tidemark-track-root@dev-disk-by\x2did-virtio\x2dsystem.service`,
	} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if table, err = table.WithoutTracked(disk); err != nil {
		t.Fatal(err)
	}
	apply(table)
	for name := range tree(t, dir) {
		if _, ok := before[name]; !ok {
			t.Errorf("%s was left", name)
		}
	}
}

func TestFilesOfOthersAndChangedFilesStay(t *testing.T) {
	const hook = "etc/initramfs-tools/hooks/tidemark-era"
	t.Run("foreign", func(t *testing.T) {
		s, dir := newSystem(t)
		put(t, dir, hook, "somebody's\n", 0o755)
		before := tree(t, dir)
		for _, force := range []bool{false, true} {
			if err := install(t, s, force, entry("root")); !errors.Is(err, ErrNotOurs) {
				t.Errorf("force %v: %v", force, err)
			}
		}
		if after := tree(t, dir); len(after) != len(before) || after[filepath.Join(dir, hook)] != "somebody's\n" {
			t.Errorf("something was done: %v", after)
		}
	})
	t.Run("changed", func(t *testing.T) {
		s, dir := newSystem(t)
		if err := install(t, s, false, entry("root")); err != nil {
			t.Fatal(err)
		}
		put(t, dir, hook, "changed\n", 0o755)
		if err := install(t, s, false); !errors.Is(err, ErrChanged) {
			t.Errorf("removed: %v", err)
		}
		if err := install(t, s, false, entry("root"), entry("two")); !errors.Is(err, ErrChanged) {
			t.Errorf("replaced: %v", err)
		}
		if table, err := s.Tab(); err != nil || len(table.Entries()) != 1 {
			t.Errorf("the table was written: %v, %v", table.Entries(), err)
		}
		if err := install(t, s, true); err != nil {
			t.Errorf("with force: %v", err)
		}
		if s.has("/"+hook, TabPath, recordPath) {
			t.Error("files are left")
		}
	})
}

// A cut between any two steps leaves files that are known as ours.
func TestAnInterruptedInstallationGoesOn(t *testing.T) {
	for done := 0; ; done++ {
		s, _ := newSystem(t)
		if err := install(t, s, false, entry("root")); err != nil {
			t.Fatal(err)
		}
		table, err := Tab{}.With(entry("root"))
		if err != nil {
			t.Fatal(err)
		}
		if table, err = table.With(systemEntry("two")); err != nil {
			t.Fatal(err)
		}
		plan, err := s.Plan(table, "/usr/local/bin/tidemark", false)
		if err != nil {
			t.Fatal(err)
		}
		cut := plan
		cut.Steps = plan.Steps[:min(done, len(plan.Steps))]
		known, err := readRecord(s.root)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.writeRecord(known.with(plan.next)); err != nil {
			t.Fatal(err)
		}
		for _, step := range cut.Steps {
			if err := s.do(step); err != nil {
				t.Fatal(err)
			}
		}
		if plan, err = s.Plan(table, "/usr/local/bin/tidemark", false); err == nil {
			err = s.Apply(plan)
		}
		if err != nil {
			t.Fatalf("cut after %d steps: %v", done, err)
		}
		if plan, err = s.Plan(table, "/usr/local/bin/tidemark", false); err != nil || plan.Changes() {
			t.Fatalf("cut after %d steps: there is still something to do, %v", done, err)
		}
		if done >= len(plan.Steps) {
			return
		}
	}
}

// A unit that is wanted at boot and finds no entry would keep the system from coming up.
func TestACutNeverLeavesAUnitWithoutItsEntry(t *testing.T) {
	two := []Entry{entry("root"), linearEntry("srv")}
	for _, c := range []struct {
		what          string
		before, after []Entry
	}{{"added", two[:1], two}, {"removed", two, two[:1]}, {"the last removed", two[1:], nil}} {
		for done := 0; ; done++ {
			s, dir := newSystem(t)
			if err := install(t, s, false, c.before...); err != nil {
				t.Fatal(err)
			}
			var table Tab
			for _, e := range c.after {
				var err error
				if table, err = table.With(e); err != nil {
					t.Fatal(err)
				}
			}
			plan, err := s.Plan(table, "/usr/bin/tidemark", false)
			if err != nil {
				t.Fatal(err)
			}
			for _, step := range plan.Steps[:min(done, len(plan.Steps))] {
				if err := s.do(step); err != nil {
					t.Fatal(err)
				}
			}
			links, err := filepath.Glob(dir + "/etc/systemd/system/local-fs.target.requires/tidemark-era@*")
			if err != nil {
				t.Fatal(err)
			}
			now, err := s.Tab()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := now.Find("srv"); len(links) > 0 && err != nil {
				t.Errorf("%s, cut after %d steps: %v", c.what, done, err)
			}
			if done >= len(plan.Steps) {
				break
			}
		}
	}
}

func TestALinearDeviceNeedsNoMetadata(t *testing.T) {
	s, dir := newSystem(t)
	early := linearEntry("root")
	early.Stage = StageInitramfs
	if err := install(t, s, false, early, linearEntry("srv")); err != nil {
		t.Fatal(err)
	}
	files := tree(t, dir)
	for name, want := range map[string][]string{
		"etc/tidemark/era.conf": {"root\t" + early.Data + "\tlinear\tinitramfs\n", "srv\t"},
		"etc/systemd/system/tidemark-era@srv.service.d/50-devices.conf": {"Requires=dev-disk-by", "[Service]\nExecStop=\n"},
		"etc/initramfs-tools/hooks/tidemark-era":                        {"manual_add_modules dm-mod "},
		"etc/initramfs-tools/scripts/local-top/tidemark-era":            {"modprobe -q dm-mod "},
		"usr/lib/dracut/modules.d/90tidemark-era/module-setup.sh":       {"instmods dm-mod\n"},
		"etc/udev/rules.d/61-tidemark-era.rules": {
			`OPTIONS+="link_priority=50", SYMLINK+="disk/by-partuuid/` + strings.TrimPrefix(early.Data, partUUID) + `"`,
			`TEST=="holders/*/dm/name", GOTO="tidemark_linear_data_srv"`, `OPTIONS+="link_priority=-100"`,
			`TEST!="/etc/systemd/system/local-fs.target.requires/tidemark-era@srv.service", GOTO`, `TEST!="/etc/initrd-release", GOTO`,
		},
	} {
		for _, part := range want {
			if !strings.Contains(files[filepath.Join(dir, name)], part) {
				t.Errorf("%s lacks %q:\n%s", name, part, files[filepath.Join(dir, name)])
			}
		}
	}
	if s.has(systemdDir + "/" + noteName) {
		t.Error("gaps are noted of devices that have none")
	}
	for name, content := range files {
		if regexp.MustCompile(`@[A-Z]+@`).MatchString(content) {
			t.Errorf("%s has a placeholder left", name)
		}
	}
	// With an era device beside it, its module is what both need.
	if err := install(t, s, false, early, entry("era")); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(tree(t, dir)[filepath.Join(dir, "etc/initramfs-tools/hooks/tidemark-era")], "manual_add_modules dm-era ") {
		t.Error("the module of the era device is missing")
	}
}

func TestStatusTellsWhatBecameOfTheFiles(t *testing.T) {
	s, dir := newSystem(t)
	put(t, dir, "usr/bin/tidemark", "program", 0o755)
	put(t, dir, "usr/bin/tidemark-boot", "its part for an initramfs", 0o755)
	if st, err := s.Status(); err != nil || !st.Good() || len(st.Files) > 0 {
		t.Errorf("nothing installed: %+v, %v", st, err)
	}
	if err := install(t, s, false, entry("root")); err != nil {
		t.Fatal(err)
	}
	if st, err := s.Status(); err != nil || !st.Good() || len(st.Devices) != 1 {
		t.Errorf("installed: %+v, %v", st, err)
	}
	put(t, dir, "etc/initramfs-tools/hooks/tidemark-era", "changed\n", 0o755)
	if err := os.Remove(filepath.Join(dir, dracutDir, "open.sh")); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "boot/initrd.img-1", "no archive", 0o644)
	st, err := s.Status()
	if err != nil || st.Good() {
		t.Fatalf("%+v, %v", st, err)
	}
	want := map[string]FileState{"/etc/initramfs-tools/hooks/tidemark-era": Changed, dracutDir + "/open.sh": Missing}
	for _, f := range st.Files {
		state, ok := want[f.Path]
		if !ok {
			state = Same
		}
		if f.State != state {
			t.Errorf("%s is %s, want %s", f.Path, f.State, state)
		}
	}
	if len(st.Images) != 1 || st.Images[0].State != ImageUnknown {
		t.Errorf("images: %+v", st.Images)
	}
}

func TestASystemThatCannotOpenTheDeviceIsRefused(t *testing.T) {
	s, err := OpenSystem(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, e := range []Entry{entry("root"), systemEntry("srv")} {
		table, err := Tab{}.With(e)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Plan(table, "/usr/bin/tidemark", false); !errors.Is(err, ErrUnsuitable) {
			t.Errorf("%s: %v", e.Stage, err)
		}
	}
	if _, err := s.Program("/bin/sh"); !errors.Is(err, ErrUnsuitable) {
		t.Errorf("a program that is not there: %v", err)
	}
}

func TestShellScriptsAreClean(t *testing.T) {
	s, dir := newSystem(t)
	if err := install(t, s, false, entry("root")); err != nil {
		t.Fatal(err)
	}
	args := []string{"--severity=style", "--exclude=SC1091"}
	for name := range tree(t, dir) {
		if strings.HasSuffix(name, ".sh") && !strings.HasSuffix(name, "module-setup.sh") || strings.Contains(name, "initramfs-tools") {
			args = append(args, name)
		}
	}
	out, err := exec.Command("shellcheck", append(args, "--shell=sh")...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatal("shellcheck is missing: run scripts/setup")
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	module := filepath.Join(dir, dracutDir, "module-setup.sh")
	if out, err := exec.Command("shellcheck", "--exclude=SC1091", module).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestDeviceUnitsAreNamedAsSystemdDoes(t *testing.T) {
	for path, want := range map[string]string{
		"/dev/disk/by-partuuid/6ab7a01e-02": `dev-disk-by\x2dpartuuid-6ab7a01e\x2d02.device`,
		"/dev/mapper/vg-srv_1.x":            `dev-mapper-vg\x2dsrv_1.x.device`,
		"/dev/disk/by-id/wwn-0x5@1":         `dev-disk-by\x2did-wwn\x2d0x5\x401.device`,
	} {
		if got := deviceUnit(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}
