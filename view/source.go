package view

import (
	"errors"
	"fmt"
	"slices"

	"tidemark/block"
	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
)

// A source is an open block device or image file, as found when the view was made.
type source struct {
	*block.Device
	roots []sysfs.Dev // the device, or the loop devices over the image
	// swapped says that swap in use lies on it.
	swapped bool
}

// name is a path by which exactly this device or file can be found and opened again,
// whatever its own path leads to by now.
func (s source) name() string { return fmt.Sprintf("/proc/self/fd/%d", s.File().Fd()) }

// dev returns the number of a device.
func (s source) dev() sysfs.Dev { return s.Identity().Dev() }

func findSource(t *mounts.Table, d *block.Device) (source, error) {
	s := source{Device: d}
	if d.IsDevice() {
		s.roots = []sysfs.Dev{d.Identity().Dev()}
		return s, nil
	}
	var err error
	s.roots, err = t.LoopsOver(s.name())
	return s, err
}

// A scene is what is mounted from the sources at one moment.
type scene struct {
	table       *mounts.Table
	sources     []source
	filesystems []mounts.Filesystem // in freeze order
	swaps       []string
}

func look(sources []*block.Device) (*scene, error) {
	if len(sources) == 0 {
		return nil, errors.New("view: no source")
	}
	t, err := mounts.Read()
	if err != nil {
		return nil, fmt.Errorf("view: %w", err)
	}
	s := &scene{table: t}
	for _, d := range sources {
		src, err := findSource(t, d)
		if err != nil {
			return nil, fmt.Errorf("view: %w", err)
		}
		swaps, err := t.SwapsOn(src.roots...)
		if err != nil {
			return nil, fmt.Errorf("view: %w", err)
		}
		src.swapped = len(swaps) > 0
		for _, a := range swaps {
			if !slices.Contains(s.swaps, a.Path) {
				s.swaps = append(s.swaps, a.Path)
			}
		}
		s.sources = append(s.sources, src)
	}
	if s.filesystems, err = t.On(s.roots()...); err != nil {
		return nil, fmt.Errorf("view: %w", err)
	}
	return s, nil
}

// roots returns those of all sources.
func (s *scene) roots() []sysfs.Dev {
	var all []sysfs.Dev
	for _, src := range s.sources {
		all = append(all, src.roots...)
	}
	return all
}

// writable returns the filesystems that can change the sources.
func (s *scene) writable() []mounts.Filesystem {
	var w []mounts.Filesystem
	for _, f := range s.filesystems {
		if !f.ReadOnly {
			w = append(w, f)
		}
	}
	return w
}
