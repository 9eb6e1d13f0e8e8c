package boot

import (
	"embed"
	"fmt"
	"io/fs"
	"slices"
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
func render(t Tab, program string, generators []Generator) []File {
	files := trackUnits(t, program)
	entries := t.Entries()
	if len(entries) == 0 && !t.Early() {
		return files
	}
	if len(entries) > 0 {
		files = append(files, File{Path: systemdDir + "/" + unitName, Mode: 0o644, Data: fill("systemd/"+unitName, "@PROGRAM@", program)})
	}
	files = append(files, File{Path: udevRules, Mode: 0o644, Data: rules(entries)})
	if early := t.Stage(StageInitramfs); t.Early() {
		if slices.ContainsFunc(early, func(e Entry) bool { return !e.Linear() }) {
			files = append(files,
				File{Path: systemdDir + "/" + noteName, Mode: 0o644, Data: fill("systemd/"+noteName, "@PROGRAM@", program)},
				File{Path: systemdDir + "/sysinit.target.wants/" + noteName, Link: "../" + noteName})
		}
		load, add := "true", "true" // without a module
		if m := module(early); m != "" {
			load, add = "modprobe -q "+m, "instmods "+m
		}
		for _, g := range generators {
			for _, p := range g.parts() {
				data := fill(p.template, "@EARLY@", EarlyProgram(program), "@MODULE@", module(early), "@LOAD@", load, "@INSTMODS@", add, "@SOURCES@", strings.Join(sources(program, g), " "))
				files = append(files, File{Path: p.to, Mode: 0o755, Data: data})
			}
		}
	}
	for _, e := range t.Stage(StageSystem) {
		files = append(files, unit(e, program)...)
	}
	return files
}

// Early reports whether anything is to be done in the initramfs.
func (t Tab) Early() bool { return len(t.Stage(StageInitramfs)) > 0 || t.TrackedRoot() != "" }

// fill returns a template with its placeholders replaced.
func fill(name string, pairs ...string) []byte {
	data, err := templates.ReadFile("files/" + name)
	if err != nil {
		panic(err) // this package names a template that it does not have
	}
	return []byte(strings.NewReplacer(pairs...).Replace(string(data)))
}

func rules(entries []Entry) []byte {
	all := fill("udev/head.rules")
	for _, e := range entries {
		link := strings.TrimPrefix(DevicePath(e.Data), "/dev/")
		links := ""
		if e.Linear() && strings.HasPrefix(e.Data, partUUID) {
			links = `OPTIONS+="link_priority=50", SYMLINK+="` + link + "\"\n"
		}
		for _, template := range [...]string{"udev/entry.rules", "udev/" + e.Kind() + ".rules"} {
			all = append(all, fill(template, "@NAME@", e.Name, "@DATALINK@", link, "@LINKS@", links, "@OPENER@", opener(e))...)
		}
	}
	return append(all, fill("udev/tail.rules")...)
}

// wanted is the link that makes systemd open an entry at boot.
func wanted(e Entry) string {
	return systemdDir + "/local-fs.target.requires/" + strings.Replace(unitName, "@", "@"+e.Name, 1)
}

// opener is a file that is there where something will open an entry before anything is
// mounted. An initramfs without systemd needs none: there names may move.
func opener(e Entry) string {
	if e.Stage == StageInitramfs {
		return "/etc/initrd-release"
	}
	return wanted(e)
}

// unit makes systemd wait for what an entry is made of, and local-fs.target fail when
// it cannot be opened.
func unit(e Entry, program string) []File {
	instance := strings.Replace(unitName, "@", "@"+e.Name, 1)
	needed := deviceUnit(DevicePath(e.Data))
	if !e.Linear() {
		needed += " " + deviceUnit(DevicePath(e.Meta))
	}
	dropIn := "# Written by \"tidemark boot install\" from " + TabPath + ".\n[Unit]\n" +
		"Requires=" + needed + "\nAfter=" + needed + "\n"
	if e.Linear() { // systemd takes it down; of its persistent snapshots it is noted how it was left
		dropIn += "[Service]\nExecStop=\nExecStop=" + program + " snapshot repair\n"
	}
	return []File{
		{Path: systemdDir + "/" + instance + ".d/50-devices.conf", Mode: 0o644, Data: []byte(dropIn)},
		{Path: wanted(e), Link: "../" + unitName},
	}
}

// deviceUnit returns the name of systemd's unit for a path.
func deviceUnit(path string) string { return escape(path) + ".device" }

// escape makes a path fit for the name of a unit, as systemd-escape --path does.
func escape(path string) string {
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
	return b.String()
}
