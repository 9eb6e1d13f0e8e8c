package boot

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// TabPath is the table of the devices that are opened at boot. It is called after those
// that it had first.
const TabPath = "/etc/tidemark/era.conf"

// tabHead begins a new table.
const tabHead = `# Devices that are opened when the machine starts, one a line: dm-era devices, and
# linear ones, which are the data device under another name.
# name, data device, metadata device or "linear", options (comma-separated):
#   initramfs   opened in the initramfs, before root is mounted
#   system      opened by systemd, before local filesystems are mounted
#   create=N    when the metadata is all zero, made anew with blocks of N bytes
# A line "track" and a disk: what changes on it is known over clean reboots. Of root's disk
# it ends with "initramfs".
# After a change by hand run "tidemark boot install", which makes the other files from this one.
`

// linearWord stands in the place of the metadata device in the line of a linear device.
const linearWord = "linear"

// Stage is the moment of the boot at which a device is opened.
type Stage string

// The stages.
const (
	StageInitramfs Stage = "initramfs" // before root is mounted
	StageSystem    Stage = "system"    // by systemd, before the other filesystems are mounted
)

// Entry is one device of the table: an era device, or a linear one, which has no
// metadata. A linear device maps each sector to the same one of its data device.
type Entry struct {
	Name   string `json:"name"`             // of the device: /dev/mapper/Name
	Data   string `json:"data"`             // PARTUUID=… or a path below /dev, as Resolve gives
	Meta   string `json:"meta,omitempty"`   // the same; "": a linear device
	Stage  Stage  `json:"stage"`            // when it is opened
	Create int64  `json:"create,omitempty"` // block size in bytes for metadata that is all zero; 0: leave it
}

// Path returns the path of the device: mount this.
func (e Entry) Path() string { return "/dev/mapper/" + e.Name }

// Linear reports whether it is a linear device.
func (e Entry) Linear() bool { return e.Meta == "" }

// Kind is "linear" or "era".
func (e Entry) Kind() string {
	if e.Linear() {
		return linearWord
	}
	return "era"
}

// createUnit is what a block size of dm-era is a multiple of, in bytes: 8 sectors.
const createUnit = 4096

// nameMax is DM_NAME_LEN of linux/dm-ioctl.h less the final zero.
const nameMax = 127

// device-mapper, udev, systemd and the shell take names of these letters without quotes.
var (
	namePattern   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)
	devicePattern = regexp.MustCompile(`^(PARTUUID=[0-9A-Fa-f-]+|/dev/(disk/by-id|mapper)/[A-Za-z0-9_.:+=@-]+)$`)
)

// Check returns an error that wraps ErrTab when a field of the entry is not valid.
func (e Entry) Check() error {
	fault := ""
	switch {
	case !namePattern.MatchString(e.Name) || len(e.Name) > nameMax:
		fault = "a name has letters, digits, _, . and - only"
	case !devicePattern.MatchString(e.Data):
		fault = fmt.Sprintf("data %q is neither PARTUUID=… nor below /dev/disk/by-id or /dev/mapper", e.Data)
	case e.Linear() && e.Create != 0:
		fault = "a linear device has no metadata to make"
	case !e.Linear() && !devicePattern.MatchString(e.Meta):
		fault = fmt.Sprintf("metadata %q is neither PARTUUID=… nor below /dev/disk/by-id or /dev/mapper", e.Meta)
	case e.Data == e.Meta:
		fault = "data and metadata are the same device"
	case e.Data == e.Path() || e.Meta == e.Path():
		fault = "it cannot be made of itself"
	case e.Stage != StageInitramfs && e.Stage != StageSystem:
		fault = fmt.Sprintf("stage %q is neither initramfs nor system", e.Stage)
	case e.Create < 0 || e.Create%createUnit != 0:
		fault = fmt.Sprintf("a block size of %d bytes is no multiple of %d", e.Create, createUnit)
	}
	if fault == "" {
		return nil
	}
	return fmt.Errorf("boot: %s device %q: %w: %s", e.Kind(), e.Name, ErrTab, fault)
}

// line is the entry as a line of the table, without the newline.
func (e Entry) line() string {
	options := string(e.Stage)
	if e.Create > 0 {
		options += ",create=" + strconv.FormatInt(e.Create, 10)
	}
	return strings.Join([]string{e.Name, e.Data, cmp.Or(e.Meta, linearWord), options}, "\t")
}

// Tab is the table of devices. Comments and empty lines are kept.
type Tab struct {
	lines []tabLine
}

type tabLine struct {
	text  string
	entry *Entry // nil: a comment, empty, or a disk to be tracked
	track string // the disk
	root  bool   // the root filesystem is on it
}

// ParseTab reads a table. The error wraps ErrTab and names the line.
func ParseTab(data []byte) (Tab, error) {
	var t Tab
	number := 0
	for line := range bytes.Lines(data) {
		number++
		text := strings.TrimRight(string(line), "\r\n")
		parsed := tabLine{text: text}
		if err := parsed.parse(t); err != nil {
			return Tab{}, fmt.Errorf("boot: %s:%d: %w", TabPath, number, err)
		}
		t.lines = append(t.lines, parsed)
	}
	return t, nil
}

// parse reads the text of a line, behind those of t.
func (l *tabLine) parse(t Tab) error {
	fields := strings.Fields(l.text)
	switch {
	case len(fields) == 0 || strings.HasPrefix(fields[0], "#"):
		return nil
	case len(fields) == 2 && fields[0] == trackWord:
		l.track = fields[1]
		return t.acceptsTracked(l.track)
	case len(fields) == 3 && fields[0] == trackWord && fields[2] == string(StageInitramfs):
		l.track, l.root = fields[1], true
		return t.acceptsRoot(l.track)
	}
	entry, err := parseEntry(fields)
	l.entry = &entry
	if err != nil {
		return err
	}
	return t.accepts(entry)
}

func parseEntry(fields []string) (Entry, error) {
	if len(fields) < 3 || len(fields) > 4 {
		return Entry{}, fmt.Errorf("%w: %d fields, want 3 or 4", ErrTab, len(fields))
	}
	e := Entry{Name: fields[0], Data: fields[1], Meta: fields[2], Stage: StageInitramfs}
	if e.Meta == linearWord {
		e.Meta = ""
	}
	if len(fields) == 4 && fields[3] != "-" {
		for option := range strings.SplitSeq(fields[3], ",") {
			if err := e.setOption(option); err != nil {
				return Entry{}, err
			}
		}
	}
	return e, e.Check()
}

func (e *Entry) setOption(option string) error {
	size, isCreate := strings.CutPrefix(option, "create=")
	switch {
	case option == string(StageInitramfs) || option == string(StageSystem):
		e.Stage = Stage(option)
	case isCreate:
		n, err := strconv.ParseInt(size, 10, 64)
		if err != nil || n <= 0 {
			return fmt.Errorf("%w: option %q", ErrTab, option)
		}
		e.Create = n
	default:
		return fmt.Errorf("%w: unknown option %q", ErrTab, option)
	}
	return nil
}

// accepts refuses an entry whose name or devices another entry has.
func (t Tab) accepts(e Entry) error {
	for _, other := range t.Entries() {
		if other.Name == e.Name {
			return fmt.Errorf("%w: device %q is there twice", ErrTab, e.Name)
		}
		for _, dev := range [...]string{e.Data, e.Meta} {
			if dev != "" && (dev == other.Data || dev == other.Meta) {
				return fmt.Errorf("%w: %s belongs to device %q", ErrTab, dev, other.Name)
			}
		}
	}
	return nil
}

// Entries returns the devices in their order.
func (t Tab) Entries() []Entry {
	var all []Entry
	for _, l := range t.lines {
		if l.entry != nil {
			all = append(all, *l.entry)
		}
	}
	return all
}

// Stage returns the devices that are opened at a stage.
func (t Tab) Stage(s Stage) []Entry {
	return slices.DeleteFunc(t.Entries(), func(e Entry) bool { return e.Stage != s })
}

// Find returns the device of that name.
func (t Tab) Find(name string) (Entry, error) {
	for _, e := range t.Entries() {
		if e.Name == name {
			return e, nil
		}
	}
	return Entry{}, fmt.Errorf("boot: %s: %w", name, ErrNoEntry)
}

// With returns the table with the entry in the place of the one of its name, or at
// the end. The error wraps ErrTab.
func (t Tab) With(e Entry) (Tab, error) {
	if err := e.Check(); err != nil {
		return Tab{}, err
	}
	at := slices.IndexFunc(t.lines, func(l tabLine) bool { return l.entry != nil && l.entry.Name == e.Name })
	changed := Tab{lines: slices.Clone(t.lines)}
	changed.begin()
	if at >= 0 {
		changed.lines = slices.Delete(changed.lines, at, at+1)
	} else {
		at = len(changed.lines)
	}
	if err := changed.accepts(e); err != nil {
		return Tab{}, fmt.Errorf("boot: %w", err)
	}
	changed.lines = slices.Insert(changed.lines, at, tabLine{text: e.line(), entry: &e})
	return changed, nil
}

// begin gives an empty table its head.
func (t *Tab) begin() {
	if len(t.lines) > 0 {
		return
	}
	for line := range strings.Lines(tabHead) {
		t.lines = append(t.lines, tabLine{text: strings.TrimSuffix(line, "\n")})
	}
}

// Empty reports whether the table has no device at all.
func (t Tab) Empty() bool { return len(t.Entries())+len(t.Tracked()) == 0 }

// Without returns the table without the device of that name. The error wraps ErrNoEntry.
func (t Tab) Without(name string) (Tab, error) {
	if _, err := t.Find(name); err != nil {
		return Tab{}, err
	}
	return Tab{lines: slices.DeleteFunc(slices.Clone(t.lines), func(l tabLine) bool {
		return l.entry != nil && l.entry.Name == name
	})}, nil
}

// Bytes is the table as a file.
func (t Tab) Bytes() []byte {
	var b bytes.Buffer
	for _, l := range t.lines {
		b.WriteString(l.text)
		b.WriteByte('\n')
	}
	return b.Bytes()
}
