// Package install_test installs tidemark as an administrator does: the packages into a
// clean Debian root (scripts/vm-root makes it), and make install into a folder. Needs root.
package install_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidemark/boot"
)

const (
	config  = "/etc/tidemark/tidemark.toml"
	eraConf = "/etc/tidemark/era.conf"
	kept    = "/var/lib/tidemark/devices/kept"
)

// The Debian package installs what it should, keeps a changed configuration over an
// upgrade, and leaves nothing when it is purged but what belongs to copies.
func TestDebianPackage(t *testing.T) {
	t.Parallel()
	d := newDebian(t)
	older, newer := d.add(packaged(t, "deb", "1~a")), d.add(packaged(t, "deb", "1~b"))
	d.run("dpkg", "--install", older)
	d.modes()
	d.works()
	d.readable()
	d.completes(d.in("usr/share/zsh/vendor-completions"))
	d.write(kept, "marks of a mirror")

	changed := d.read(config) + "\n# changed\n"
	d.write(config, changed)
	d.run("dpkg", "--install", newer)
	if have := d.read(config); have != changed {
		t.Errorf("the upgrade changed the configuration:\n%s", have)
	}

	d.write(eraConf, "# devices\nroot PARTUUID=1 PARTUUID=2\n")
	if out := d.fails("dpkg", "--remove", "tidemark"); !strings.Contains(out, "tidemark boot uninstall") {
		t.Errorf("removed while an era device is opened at boot:\n%s", out)
	}
	d.run("tidemark", "version")
	must(t, "rm", d.in(eraConf))

	d.run("dpkg", "--remove", "tidemark")
	d.has("/usr/bin/tidemark", false)
	d.has(config, true)
	if out := d.run("dpkg", "--purge", "tidemark"); !strings.Contains(out, "/var/lib/tidemark") {
		t.Errorf("a purge does not say what is left:\n%s", out)
	}
	d.has("/etc/tidemark", false)
	d.has(kept, true)
	if left := strings.TrimSpace(must(t, "find", d.dir, "-name", "*tidemark*", "-not", "-path", "*/root/*.deb")); left != d.in("var/lib/tidemark") {
		t.Errorf("a purge leaves\n%s", left)
	}
}

// The RPM package holds the same files; rpm installs and removes it.
func TestRPMPackage(t *testing.T) {
	t.Parallel()
	file := packaged(t, "rpm", "1~a")
	d := newDebian(t) // for the shell of the package's scripts
	dpkg := strings.Fields(must(t, "sh", "-c", `dpkg-deb --fsys-tarfile "$0" | tar -t | grep -v '/$'`, packaged(t, "deb", "1~a")))
	var want []string
	for _, name := range dpkg {
		want = append(want, strings.NewReplacer("doc/tidemark/copyright", "licenses/tidemark/LICENSE",
			"vendor-completions", "site-functions").Replace(strings.TrimPrefix(name, ".")))
	}
	want = append(want, "/etc/tidemark", "/usr/lib/systemd/system/multi-user.target.wants")
	have := strings.Fields(must(t, "rpm", "-qp", "--list", file))
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(have, want) {
		t.Errorf("it holds\n%s\nthe Debian package\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
	if out := strings.Fields(must(t, "rpm", "-qp", "--configfiles", file)); !slices.Equal(out, []string{config}) {
		t.Errorf("configuration: %q", out)
	}
	rpm := func(args ...string) (string, error) {
		return try(t, "rpm", append([]string{"--root", d.dir, "--dbpath", "/var/lib/rpm"}, args...)...)
	}
	if out, err := rpm("--install", "--nodeps", file); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d.modes()
	d.works()
	d.write(kept, "marks of a mirror")
	d.write(eraConf, "root PARTUUID=1 PARTUUID=2\n")
	if out, err := rpm("--erase", "tidemark"); err == nil {
		t.Errorf("removed while an era device is opened at boot:\n%s", out)
	}
	must(t, "rm", d.in(eraConf))
	if out, err := rpm("--erase", "tidemark"); err != nil || !strings.Contains(out, "/var/lib/tidemark") {
		t.Errorf("erased: %v\n%s", err, out)
	}
	d.has("/usr/bin/tidemark", false)
	d.has(kept, true)
}

// make install puts the same files below its prefix and keeps a configuration that is
// there; make uninstall takes all of them but that away.
func TestMakeInstall(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := debian{dir, t}
	build(t)
	d.write(config, "# mine\n")
	runMake(t, "install", "DESTDIR="+dir)
	for _, path := range [...]string{
		"/usr/local/bin/tidemark", "/usr/local/bin/tidemark-boot", "/usr/local/share/man/man1/tidemark.1.gz",
		"/usr/local/share/zsh/site-functions/_tidemark", "/usr/local/lib/systemd/system/tidemark-job@.service",
	} {
		d.has(path, true)
	}
	if unit := d.read("/usr/local/lib/systemd/system/tidemark-job@.service"); !strings.Contains(unit, "=/usr/local/bin/tidemark ") ||
		strings.Contains(unit, "/usr/bin/tidemark") {
		t.Errorf("the unit runs another program:\n%s", unit)
	}
	runMake(t, "uninstall", "DESTDIR="+dir)
	if left := strings.TrimSpace(must(t, "find", dir, "-type", "f")); left != d.in(config) || d.read(config) != "# mine\n" {
		t.Errorf("make uninstall leaves\n%s", left)
	}
	must(t, "rm", d.in(config))
	runMake(t, "install", "DESTDIR="+dir, "prefix=/usr")
	d.has("/usr/bin/tidemark", true)
	d.has(config, true)
}

// maxEarly is what an initramfs may grow by, compressed, in bytes.
const maxEarly = 6 << 20

// What goes into an initramfs is small, also with the gzip that is the least of what initramfs-tools
// and dracut compress with, and is of one build with the whole program.
func TestWhatAnInitramfsGetsIsSmall(t *testing.T) {
	t.Parallel()
	build(t)
	packed := len(must(t, "gzip", "-6", "--stdout", "../../bin/tidemark-boot"))
	t.Logf("tidemark-boot is %d bytes compressed", packed)
	if packed > maxEarly {
		t.Errorf("tidemark-boot is %d bytes compressed, more than %d", packed, maxEarly)
	}
	sys, err := boot.OpenSystem("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Close()
	if err := sys.CheckEarly("/tidemark"); err != nil {
		t.Error(err)
	}
}

// modes fails the test unless the files that matter have the right owner and mode.
func (d debian) modes() {
	d.t.Helper()
	for path, want := range map[string]string{
		"/usr/bin/tidemark":                                  "755 root root",
		"/usr/bin/tidemark-boot":                             "755 root root",
		"/usr/share/man/man1/tidemark-mirror.1.gz":           "644 root root",
		"/usr/share/bash-completion/completions/tidemark":    "644 root root",
		"/usr/share/fish/vendor_completions.d/tidemark.fish": "644 root root",
		"/usr/lib/systemd/system/tidemark-job@.service":      "644 root root",
		"/etc/tidemark/tidemark.toml":                        "600 root root",
		"/etc/tidemark":                                      "755 root root",
		"/usr/bin":                                           "755 root root",
	} {
		if have := strings.TrimSpace(must(d.t, "stat", "--format", "%a %U %G", d.in(path))); have != want {
			d.t.Errorf("%s: %s, want %s", path, have, want)
		}
	}
}

// works runs the program, and has it and systemd judge the configuration and the units.
func (d debian) works() {
	d.t.Helper()
	if out := d.run("tidemark", "version"); !strings.HasPrefix(out, "tidemark ") {
		d.t.Errorf("tidemark version: %s", out)
	}
	d.run("tidemark", "job", "check")
	units, err := filepath.Glob(d.in("usr/lib/systemd/system/tidemark-*"))
	if err != nil || len(units) == 0 {
		d.t.Fatalf("units: %v, %v", units, err)
	}
	for _, unit := range units {
		// A template is judged by one of its units.
		name := strings.Replace(filepath.Base(unit), "@.", "@root.", 1)
		if out := d.run("systemd-analyze", "verify", "--man=no", name); strings.Contains(out, "tidemark") {
			d.t.Errorf("%s: %s", name, out)
		}
	}
}

// readable renders every manual page.
func (d debian) readable() {
	d.t.Helper()
	pages, err := filepath.Glob(d.in("usr/share/man/man1/tidemark*.1.gz"))
	if err != nil || len(pages) < 10 {
		d.t.Fatalf("manual pages: %v, %v", pages, err)
	}
	for _, page := range pages {
		out := must(d.t, "man", "--warnings", "--local-file", page)
		name := strings.ToUpper(strings.TrimSuffix(filepath.Base(page), ".1.gz"))
		if !strings.HasPrefix(strings.TrimSpace(out), name) || strings.Contains(out, "warning:") {
			d.t.Errorf("%s: %.300s", page, out)
		}
	}
}

// completes has each shell load its completion and complete a command.
func (d debian) completes(zshdir string) {
	d.t.Helper()
	d.run("bash", "-c", ". /usr/share/bash-completion/completions/tidemark && complete -p tidemark")
	must(d.t, "zsh", "-fc", `fpath=($0 $fpath); autoload -Uz compinit && compinit -u -D && [[ $_comps[tidemark] == _tidemark ]] && autoload +X -Uz _tidemark`, zshdir)
	out := must(d.t, "env", "PATH="+d.in("usr/bin")+":"+os.Getenv("PATH"), "fish", "--no-config", "--command", "source "+d.in("usr/share/fish/vendor_completions.d/tidemark.fish")+"; complete --do-complete 'tidemark mir'")
	if !strings.Contains(out, "mirror") {
		d.t.Errorf("fish completes %q", out)
	}
}
