package view

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"tidemark/linux/mounts"
)

// A source is a block device or an image file, as found when the view was made.
type source struct {
	path  string
	dev   mounts.Dev // the device; zero for an image file
	image bool
	roots []mounts.Dev // the device, or the loop devices over the image
	// swapped says that swap in use lies on it.
	swapped bool
}

// findSources looks each path up.
func findSources(t *mounts.Table, paths []string) ([]source, error) {
	if len(paths) == 0 {
		return nil, errors.New("view: no source")
	}
	var found []source
	for _, p := range paths {
		s, err := findSource(t, p)
		if err != nil {
			return nil, fmt.Errorf("view: %w", err)
		}
		found = append(found, s)
	}
	return found, nil
}

func findSource(t *mounts.Table, path string) (source, error) {
	s := source{path: path}
	info, err := os.Stat(path)
	if err != nil {
		return s, err
	}
	d, err := mounts.DeviceOf(path)
	switch {
	case err == nil:
		s.dev, s.roots = d, []mounts.Dev{d}
		return s, nil
	case !errors.Is(err, unix.ENOTBLK):
		return s, err
	case !info.Mode().IsRegular():
		return s, fmt.Errorf("%s: not a block device or image file", path)
	}
	s.image = true
	s.roots, err = t.LoopsOver(path)
	return s, err
}

// A scene is what is mounted from the sources at one moment.
type scene struct {
	table       *mounts.Table
	sources     []source
	filesystems []mounts.Filesystem // in freeze order
	swaps       []string
}

func look(paths []string) (*scene, error) {
	t, err := mounts.Read()
	if err != nil {
		return nil, fmt.Errorf("view: %w", err)
	}
	s := &scene{table: t}
	if s.sources, err = findSources(t, paths); err != nil {
		return nil, err
	}
	var roots []mounts.Dev
	for i := range s.sources {
		src := &s.sources[i]
		roots = append(roots, src.roots...)
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
	}
	if s.filesystems, err = t.On(roots...); err != nil {
		return nil, fmt.Errorf("view: %w", err)
	}
	return s, nil
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
