package boot

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

//go:embed files
var templates embed.FS

// File is one of the files that are made from the table.
type File struct {
	Path string      // in the system, absolute
	Mode fs.FileMode // permissions
	Data []byte
	Link string // a symbolic link to this, relative or absolute; "": a regular file with Data
}

// Where the files go. dracut looks for modules in the one folder only.
const (
	udevRules   = "/etc/udev/rules.d/61-tidemark-era.rules"
	systemdDir  = "/etc/systemd/system"
	unitName    = "tidemark-era@.service"
	noteName    = "tidemark-era-note.service"
	initramfsIn = "/etc/initramfs-tools"
	scriptName  = "tidemark-era"
	dracutDir   = "/usr/lib/dracut/modules.d/90tidemark-era"
)

// Generator is a program that makes initramfs images.
type Generator string

// The generators that are known.
const (
	InitramfsTools Generator = "initramfs-tools"
	Dracut         Generator = "dracut"
)

// Command returns the command line that makes all images anew.
func (g Generator) Command() []string {
	if g == Dracut {
		return []string{"dracut", "--force", "--regenerate-all"}
	}
	return []string{"update-initramfs", "-u", "-k", "all"}
}

// part is one of a generator's files, and the template that it is made of.
type part struct{ to, template string }

// parts lists the files of a generator: what makes an image first, then what runs in it.
func (g Generator) parts() []part {
	if g == Dracut {
		return []part{
			{dracutDir + "/module-setup.sh", "dracut/module-setup.sh"},
			{dracutDir + "/open.sh", "dracut/open.sh"},
			{dracutDir + "/timeout.sh", "dracut/timeout.sh"},
			{dracutDir + "/guard.sh", "dracut/guard.sh"},
		}
	}
	all := []part{{initramfsIn + "/hooks/" + scriptName, "initramfs-tools/hook"}}
	for _, stage := range [...]string{"local-top", "local-block", "local-premount", "panic"} {
		all = append(all, part{initramfsIn + "/scripts/" + stage + "/" + scriptName, "initramfs-tools/script"})
	}
	return all
}

// render makes the files of a table for a system where tidemark is at program.
func render(t Tab, program string, generators []Generator) ([]File, error) {
	entries := t.Entries()
	if len(entries) == 0 {
		return nil, nil
	}
	r := renderer{replace: strings.NewReplacer("@PROGRAM@", program)}
	r.add(systemdDir+"/"+unitName, 0o644, "systemd/"+unitName)
	r.rules(entries)
	if len(t.Stage(StageInitramfs)) > 0 {
		r.add(systemdDir+"/"+noteName, 0o644, "systemd/"+noteName)
		r.files = append(r.files, File{Path: systemdDir + "/sysinit.target.wants/" + noteName, Link: "../" + noteName})
		for _, g := range generators {
			for _, p := range g.parts() {
				r.add(p.to, 0o755, p.template, "@SOURCES@", strings.Join(sources(program, g), " "))
			}
		}
	}
	for _, e := range t.Stage(StageSystem) {
		r.unit(e)
	}
	return r.files, r.err
}

// renderer collects files.
type renderer struct {
	replace *strings.Replacer
	files   []File
	err     error
}

// template returns a template with its placeholders replaced.
func (r *renderer) template(name string, more ...string) string {
	data, err := templates.ReadFile(path.Join("files", name))
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("boot: %w", err)
	}
	text := r.replace.Replace(string(data))
	return strings.NewReplacer(more...).Replace(text)
}

func (r *renderer) add(to string, mode fs.FileMode, template string, more ...string) {
	r.files = append(r.files, File{Path: to, Mode: mode, Data: []byte(r.template(template, more...))})
}

func (r *renderer) rules(entries []Entry) {
	var text strings.Builder
	text.WriteString(r.template("udev/head.rules"))
	for _, e := range entries {
		text.WriteString(r.template("udev/entry.rules", "@NAME@", e.Name, "@DATALINK@", strings.TrimPrefix(DevicePath(e.Data), "/dev/")))
	}
	text.WriteString(r.template("udev/tail.rules"))
	r.files = append(r.files, File{Path: udevRules, Mode: 0o644, Data: []byte(text.String())})
}

// unit makes systemd wait for the devices of an entry, and local-fs.target fail when
// it cannot be opened.
func (r *renderer) unit(e Entry) {
	instance := strings.Replace(unitName, "@", "@"+e.Name, 1)
	data, meta := deviceUnit(DevicePath(e.Data)), deviceUnit(DevicePath(e.Meta))
	dropIn := "# Written by \"tidemark boot install\" from " + TabPath + ".\n[Unit]\n" +
		"Requires=" + data + " " + meta + "\nAfter=" + data + " " + meta + "\n"
	r.files = append(r.files,
		File{Path: systemdDir + "/" + instance + ".d/50-devices.conf", Mode: 0o644, Data: []byte(dropIn)},
		File{Path: systemdDir + "/local-fs.target.requires/" + instance, Link: "../" + unitName})
}

// deviceUnit returns the name of systemd's unit for a path, as systemd-escape --path does.
func deviceUnit(path string) string {
	var b strings.Builder
	for i, c := range []byte(strings.TrimPrefix(path, "/")) {
		switch {
		case c == '/':
			b.WriteByte('-')
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == ':', c == '_', c == '.' && i > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String() + ".device"
}
