package adopt

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"tidemark/linux/blkid"
	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
)

// Reference is a setting that names a device by a name that goes on to lead to the plain
// device, or to none, when a linear device is over it.
type Reference struct {
	File string `json:"file"`
	Line int    `json:"line"` // counted from 1
	Name string `json:"name"` // as it is written there
	// Loader: it is root= for the kernel, by the name that the kernel itself has for the
	// device, which initramfs-tools is taught to follow.
	Loader bool `json:"loader,omitempty"`
}

// String is the place and the name.
func (r Reference) String() string { return fmt.Sprintf("%s:%d: %s", r.File, r.Line, r.Name) }

// settings tells how a kind of file names devices: by the field of a line, counted from 0, or
// by what a pattern finds.
type settings struct {
	glob    string
	field   int
	pattern *regexp.Regexp // nil: the field
	loader  bool
}

var (
	rootWord = regexp.MustCompile(`\broot=([^\s"']+)`)
	whatLine = regexp.MustCompile(`^What=(\S+)`)
)

// all lists the files that are looked at. What the running kernel was told is of the last
// boot: it counts where no file of a boot loader is found.
var all = []settings{
	{"etc/fstab", 0, nil, false},
	{"etc/crypttab", 1, nil, false},
	{"etc/systemd/system/*.mount", 0, whatLine, false},
	{"etc/default/grub", 0, rootWord, true},
	{"etc/default/grub.d/*.cfg", 0, rootWord, true},
	{"etc/kernel/cmdline", 0, rootWord, true},
	{"boot/grub/grub.cfg", 0, rootWord, true},
	{"boot/grub2/grub.cfg", 0, rootWord, true},
	{"boot/loader/entries/*.conf", 0, rootWord, true},
	{"boot/efi/loader/entries/*.conf", 0, rootWord, true},
	{"efi/loader/entries/*.conf", 0, rootWord, true},
	{"boot/extlinux/extlinux.conf", 0, rootWord, true},
}

// References returns the settings of the system below root that name the block device at
// path, other than by UUID, LABEL or PARTUUID, in the order of the files.
func References(root, path string) ([]Reference, error) {
	dev, err := mounts.DeviceOf(path)
	if err != nil {
		return nil, fmt.Errorf("adopt: %w", err)
	}
	return search(root, func(name string) bool { return leadsTo(name, dev) })
}

// ReferencesTo returns the settings of the system below root that name a device of
// device-mapper by its path, which will not be there any more.
func ReferencesTo(root, path string) ([]Reference, error) {
	return search(root, func(name string) bool { return filepath.Clean(name) == path })
}

func search(root string, is func(name string) bool) ([]Reference, error) {
	found, loaders, err := scan(root, all, is)
	if err == nil && loaders == 0 {
		var command []Reference
		command, _, err = scan(root, []settings{{"proc/cmdline", 0, rootWord, true}}, is)
		found = append(found, command...)
	}
	if err != nil {
		return nil, fmt.Errorf("adopt: %w", err)
	}
	return found, nil
}

// scan looks at files, and counts the lines of boot loaders that name any root.
func scan(root string, kinds []settings, is func(name string) bool) (found []Reference, loaders int, err error) {
	for _, kind := range kinds {
		files, err := filepath.Glob(filepath.Join(root, kind.glob))
		if err != nil {
			return nil, 0, err
		}
		slices.Sort(files)
		for _, file := range files {
			data, err := os.ReadFile(file)
			if errors.Is(err, fs.ErrNotExist) {
				continue // a link that leads nowhere
			}
			if err != nil {
				return nil, 0, err
			}
			number := 0
			for line := range bytes.Lines(data) {
				number++
				for _, name := range kind.names(strings.TrimSpace(string(line))) {
					if kind.loader {
						loaders++
					}
					if is(name) {
						found = append(found, Reference{file, number, name, kind.loader && filepath.Dir(name) == "/dev"})
					}
				}
			}
		}
	}
	return found, loaders, nil
}

// names returns the names of devices in a line.
func (s settings) names(line string) []string {
	if strings.HasPrefix(line, "#") {
		return nil
	}
	if s.pattern == nil {
		if fields := strings.Fields(line); len(fields) > s.field {
			return []string{unescape(fields[s.field])}
		}
		return nil
	}
	var names []string
	for _, m := range s.pattern.FindAllStringSubmatch(line, -1) {
		names = append(names, m[1])
	}
	return names
}

var octal = regexp.MustCompile(`\\[0-7]{3}`)

// unescape undoes what fstab(5) asks for in place of blanks.
func unescape(name string) string {
	return octal.ReplaceAllStringFunc(name, func(s string) string {
		n, err := strconv.ParseUint(s[1:], 8, 8)
		if err != nil {
			return s
		}
		return string([]byte{byte(n)})
	})
}

// linkFolders are the links that a linear device takes over, by the tags that stand for
// them.
var linkFolders = map[string]bool{
	"UUID": true, "LABEL": true, "PARTUUID": true,
	"by-uuid": true, "by-label": true, "by-partuuid": true,
}

// leadsTo reports whether a name leads to the device, and would not lead to a linear device
// over it.
func leadsTo(name string, dev sysfs.Dev) bool {
	path := name
	if tag, ok := blkid.ParseTag(name); ok {
		path = filepath.Join("/dev/disk/by-partlabel", strings.ReplaceAll(tag.Value, " ", `\x20`))
		if linkFolders[string(tag.Key)] {
			return false
		}
	}
	path = filepath.Clean(path)
	if !strings.HasPrefix(path, "/dev/") || linkFolders[filepath.Base(filepath.Dir(path))] {
		return false
	}
	n, err := mounts.DeviceOf(path)
	return err == nil && n == dev
}
