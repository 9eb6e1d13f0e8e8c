package boot

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Status describes what is installed in a system.
type Status struct {
	Program    string      `json:"program,omitempty"` // path in the system
	Generators []Generator `json:"generators"`
	Devices    []Entry     `json:"devices"`
	// Tracked are the disks of which the changes are known over reboots.
	Tracked []TrackedStatus `json:"tracked"`
	Files   []FileStatus    `json:"files"`
	Images  []ImageStatus   `json:"images"`
}

// TrackedStatus is a disk of which the changes are known over clean reboots.
type TrackedStatus struct {
	Disk string `json:"disk"` // by its name in the table
	// LostAtReboot says why the next reboot will lose all marks; empty: a clean one keeps them.
	// System.Status leaves it empty, System.Lasting tells.
	LostAtReboot string `json:"lost_at_reboot,omitempty"`
}

// FileStatus is the state of one file.
type FileStatus struct {
	Path  string    `json:"path"`
	State FileState `json:"state"`
}

// ImageState compares an initramfs with what is installed.
type ImageState string

// The states of an initramfs.
const (
	ImageCurrent ImageState = "current" // it was made of the files as they are now
	ImageStale   ImageState = "stale"   // it was made before the table, the program or a script changed
	ImageWithout ImageState = "without" // it opens no device
	ImageUnknown ImageState = "unknown" // the generator's tool could not list it
)

// ImageStatus is the state of one initramfs.
type ImageStatus struct {
	Path   string     `json:"path"`
	State  ImageState `json:"state"`
	Reason string     `json:"reason,omitempty"` // why it is not current
}

// Good reports whether every file and every image is as the table asks, and no tracked disk is known
// to lose its marks.
func (s Status) Good() bool {
	return len(s.Bad()) == 0 && !slices.ContainsFunc(s.Tracked, func(d TrackedStatus) bool { return d.LostAtReboot != "" })
}

// Bad says in words which files and images are not as the table asks.
func (s Status) Bad() (all []string) {
	for _, f := range s.Files {
		if f.State != Same {
			all = append(all, fmt.Sprintf("%s is %s", f.Path, f.State))
		}
	}
	for _, i := range s.Images {
		if i.State != ImageCurrent {
			all = append(all, fmt.Sprintf("%s is %s: %s", i.Path, i.State, i.Reason))
		}
	}
	return all
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
	st := Status{Program: known.Program, Generators: s.Generators(), Devices: t.Entries(), Tracked: []TrackedStatus{}}
	for _, disk := range t.Tracked() {
		st.Tracked = append(st.Tracked, TrackedStatus{Disk: disk})
	}
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
	if t.Early() {
		st.Files = append(st.Files, FileStatus{EarlyProgram(known.Program), s.earlyState(known.Program)})
		st.Images, err = s.images(known.Program, module(t.Stage(StageInitramfs)))
	}
	return st, err
}

// imagePatterns are the names of images in Debian, Fedora and SUSE, and in Arch.
var imagePatterns = [...]string{"initrd.img-*", "initramfs-*.img", "initrd-*"}

// images judges the images in /boot, except those for rescue and for crash dumps.
func (s *System) images(program, module string) ([]ImageStatus, error) {
	generators := s.Generators()
	var stamps []string
	for _, g := range generators {
		sum, err := s.stamp(program, g)
		if err != nil {
			return nil, err
		}
		stamps = append(stamps, sum)
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
			image := path.Join("/boot", base)
			st := ImageStatus{Path: image, State: ImageUnknown, Reason: "neither initramfs-tools nor dracut is installed"}
			if len(generators) > 0 {
				listing, err := s.list(generators[0], image)
				needed := module
				if s.builtin(base, module) {
					needed = ""
				}
				if st.State, st.Reason = judge(listing, stamps, needed); err != nil {
					st.State, st.Reason = ImageUnknown, err.Error()
				}
			}
			all = append(all, st)
		}
	}
	return s.imageless(all)
}

// imageless adds the kernels in /boot for which there is no image: a boot of theirs is without ours.
func (s *System) imageless(all []ImageStatus) ([]ImageStatus, error) {
	kernels, err := filepath.Glob(filepath.Join(s.dir, "boot/vmlinuz-*"))
	if err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	for _, path := range kernels {
		base := filepath.Base(path)
		of := func(i ImageStatus) bool {
			return releaseOf(filepath.Base(i.Path)) == strings.TrimPrefix(base, "vmlinuz-")
		}
		if !strings.Contains(base, "rescue") && !slices.ContainsFunc(all, of) {
			all = append(all, ImageStatus{Path: "/boot/" + base, State: ImageWithout, Reason: "there is no initramfs for this kernel"})
		}
	}
	return all, nil
}
