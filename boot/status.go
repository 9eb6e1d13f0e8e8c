package boot

import (
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Status is what is installed in a system.
type Status struct {
	Program    string        `json:"program,omitempty"` // path in the system
	Generators []Generator   `json:"generators"`
	Devices    []Entry       `json:"devices"`
	Files      []FileStatus  `json:"files"`
	Images     []ImageStatus `json:"images"`
}

// FileStatus is the state of one file.
type FileStatus struct {
	Path  string    `json:"path"`
	State FileState `json:"state"`
}

// ImageState is how an initramfs stands to what is installed.
type ImageState string

// The states of an initramfs.
const (
	ImageCurrent ImageState = "current" // it opens the devices of the table
	ImageStale   ImageState = "stale"   // it was made before something changed
	ImageWithout ImageState = "without" // it opens no era device
	ImageUnknown ImageState = "unknown" // it could not be read
)

// ImageStatus is the state of one initramfs.
type ImageStatus struct {
	Path   string     `json:"path"`
	State  ImageState `json:"state"`
	Reason string     `json:"reason,omitempty"` // why it is not current
}

// Good reports whether the next boot does what the table says.
func (s Status) Good() bool {
	return !slices.ContainsFunc(s.Files, func(f FileStatus) bool { return f.State != Same }) &&
		!slices.ContainsFunc(s.Images, func(i ImageStatus) bool { return i.State != ImageCurrent })
}

// Status looks at the files and, when a device is opened in the initramfs, at the
// images in the system's /boot.
func (s *System) Status() (Status, error) {
	t, err := s.Tab()
	if err != nil {
		return Status{}, err
	}
	known, err := readRecord(s.root)
	if err != nil {
		return Status{}, err
	}
	st := Status{Program: known.Program, Generators: s.Generators(), Devices: t.Entries()}
	plan, err := s.planOf(t, known.Program, known, true)
	if err != nil {
		return Status{}, err
	}
	for _, step := range plan.Steps {
		if step.File.Path == TabPath || step.Action == Keep && step.State == Missing {
			continue
		}
		st.Files = append(st.Files, FileStatus{step.File.Path, step.State})
	}
	if len(t.Stage(StageInitramfs)) > 0 {
		st.Images, err = s.images(t, known.Program)
	}
	return st, err
}

// imagePatterns are the names of images in Debian, Fedora and SUSE, and in Arch.
var imagePatterns = [...]string{"initrd.img-*", "initramfs-*.img", "initrd-*"}

func (s *System) images(t Tab, program string) ([]ImageStatus, error) {
	wanted, err := s.wanted(t, program)
	if err != nil {
		return nil, err
	}
	var all []ImageStatus
	for _, pattern := range imagePatterns {
		names, err := filepath.Glob(filepath.Join(s.dir, "boot", pattern))
		if err != nil {
			return nil, fmt.Errorf("boot: %w", err)
		}
		for _, name := range names {
			base := filepath.Base(name)
			if strings.Contains(base, "rescue") || strings.Contains(base, "kdump") || path.Ext(base) == ".bak" || path.Ext(base) == ".dpkg-bak" {
				continue
			}
			all = append(all, wanted.judge(name, path.Join("/boot", base)))
		}
	}
	return all, nil
}

// wanted is what an initramfs should hold.
type wanted struct {
	entries []Entry
	program string                          // its sum
	scripts map[Generator]map[string]string // of each generator: path in an initramfs → sum
}

func (s *System) wanted(t Tab, program string) (wanted, error) {
	w := wanted{entries: t.Stage(StageInitramfs), scripts: map[Generator]map[string]string{}}
	f, err := s.root.Open(inside(program))
	if err != nil {
		return w, fmt.Errorf("boot: %w", err)
	}
	defer f.Close()
	if w.program, err = sumOf(f); err != nil {
		return w, fmt.Errorf("boot: %w", err)
	}
	for _, g := range s.Generators() {
		files, err := render(t, program, []Generator{g})
		if err != nil {
			return w, err
		}
		w.scripts[g] = map[string]string{}
		for _, f := range files {
			if in := imagePath(f.Path); in != "" {
				w.scripts[g][in] = f.sum()
			}
		}
	}
	return w, nil
}

func sumOf(f *os.File) (string, error) {
	data, err := io.ReadAll(f)
	return File{Data: data}.sum(), err
}

// imagePath is where a file is found in an initramfs; "" when it is not copied.
func imagePath(p string) string {
	if stage, ok := strings.CutPrefix(p, initramfsIn+"/"); ok && strings.HasPrefix(stage, "scripts/") {
		return stage
	}
	switch {
	case path.Dir(p) == dracutDir && path.Base(p) != "module-setup.sh":
		return map[string]string{
			"open.sh":    "dracut/hooks/initqueue/settled/50-open.sh",
			"timeout.sh": "dracut/hooks/initqueue/timeout/01-timeout.sh",
			"guard.sh":   "dracut/hooks/pre-mount/01-guard.sh",
		}[path.Base(p)]
	case p == udevRules:
		return path.Base(p)
	}
	return ""
}

// judge compares an image with what is wanted.
func (w wanted) judge(name, shown string) ImageStatus {
	img, err := readImage(name)
	if err != nil {
		return ImageStatus{shown, ImageUnknown, err.Error()}
	}
	st := ImageStatus{Path: shown, State: ImageStale}
	scripts, found := w.scripts[InitramfsTools], img.find("scripts/local-top/"+scriptName) != ""
	if !found {
		scripts, found = w.scripts[Dracut], img.find("dracut/hooks/pre-mount/01-guard.sh") != ""
	}
	table, err := ParseTab(img.table)
	switch {
	case !found || img.table == nil:
		st.State, st.Reason = ImageWithout, "it was made without the era devices"
	case err != nil || !slices.Equal(table.Stage(StageInitramfs), w.entries):
		st.Reason = "it has another table of era devices"
	case img.find("bin/tidemark") != w.program:
		st.Reason = "it has another version of tidemark"
	case img.find("dm-era.ko*") == "" && !img.builtin:
		st.State, st.Reason = ImageWithout, "it lacks the kernel module dm-era"
	default:
		st.State = ImageCurrent
		for in, sum := range scripts {
			if img.find(in) != sum {
				st.State, st.Reason = ImageStale, "it has another "+path.Base(in)
			}
		}
	}
	return st
}

// find returns the sum of the file whose path ends so, or of a pattern's name; "" when
// there is none.
func (img image) find(end string) string {
	for name, sum := range img.sums {
		prefix, isPattern := strings.CutSuffix(end, "*")
		if name == end || strings.HasSuffix(name, "/"+end) || isPattern && strings.HasPrefix(path.Base(name), prefix) {
			return sum
		}
	}
	return ""
}
