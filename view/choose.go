package view

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"tidemark/block"
	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
)

// Choose returns the provider for kind "auto" (or ""), "freeze" or "offline", and
// in words what was chosen and why. Auto freezes when a writable filesystem is
// mounted from any of the sources, and otherwise relies on nobody writing; it is
// refused with ErrUnseen where a source has a holder that cannot be seen.
// "offline" is refused with ErrMounted where a filesystem is mounted, "freeze" with
// ErrNothingToFreeze where none is. Where auto would fail because a holder cannot be
// seen, the other two warn.
func Choose(ctx context.Context, kind string, o Options) (Provider, string, error) {
	s, err := look(o.Sources)
	if err != nil {
		return nil, "", err
	}
	unseen, untold := s.unseen(ctx)
	warning := s.warning() + warnUnseen(unseen) + warnUntold(untold)
	w := s.writable()
	switch kind {
	case "", "auto":
		if err := refuseUnseen(unseen, untold); err != nil {
			return nil, "", err
		}
		stops, why := s.auto()
		if stops {
			return Freeze(o), why, nil
		}
		return Offline(o), why, nil
	case "freeze":
		if len(w) == 0 {
			return nil, "", fmt.Errorf("view: freeze: %w", ErrNothingToFreeze)
		}
		return Freeze(o), "freeze: as asked: " + names(w) + warning, nil
	case "offline":
		if len(w) > 0 {
			return nil, "", fmt.Errorf("view: offline: %w: %s", ErrMounted, names(w))
		}
		o.Unseen = true
		return Offline(o), "offline: as asked" + warning, nil
	}
	return nil, "", fmt.Errorf("view: unknown kind %q, want auto, freeze or offline", kind)
}

// Foresee says which kind Choose would choose by itself, and why. It does not look for
// holders that cannot be seen: that would claim the sources for a moment, in which others
// could not.
func Foresee(sources []*block.Device) (kind, why string, err error) {
	s, err := look(sources)
	if err != nil {
		return "", "", err
	}
	_, text := s.auto()
	kind, why, _ = strings.Cut(text, ": ")
	return kind, why, nil
}

// Through tells how writable filesystems lie on the sources: direct ones on a source alone, so that
// the kernel freezes them when a source of device-mapper is suspended, others on what is made of a
// source, or on several devices.
func Through(sources []*block.Device) (direct, others bool, err error) {
	s, err := look(sources)
	if err != nil {
		return false, false, err
	}
	for _, f := range s.writable() {
		if len(f.Members) == 1 && slices.Contains(s.roots(), f.Members[0]) {
			direct = true
		} else {
			others = true
		}
	}
	return direct, others, nil
}

// auto chooses by what is mounted, and says so. Stops says that it freezes.
func (s *scene) auto() (stops bool, why string) {
	if w := s.writable(); len(w) > 0 {
		return true, "freeze: mounted read-write: " + names(w) + s.warning()
	}
	return false, "offline: " + s.idle() + s.warning()
}

// unseen names the devices whose holders cannot be seen; beside an error, as far as
// that could be told.
func (s *scene) unseen(ctx context.Context) ([]string, error) {
	var names []string
	for _, src := range s.sources {
		names = append(names, src.name())
	}
	hidden, err := s.table.Hidden(ctx, names...)
	for i, h := range hidden {
		if at := slices.Index(names, h); at >= 0 {
			hidden[i] = s.sources[at].Path()
		}
	}
	return hidden, err
}

// refuseUnseen is for what unseen returned.
func refuseUnseen(devices []string, untold error) error {
	switch {
	case len(devices) > 0:
		return fmt.Errorf("view: %s: %w", strings.Join(devices, ", "), ErrUnseen)
	case untold != nil:
		return fmt.Errorf("view: whether somebody unseen uses the source cannot be told (choose the view by hand): %w", untold)
	}
	return nil
}

// warnUnseen says what the copy may lack.
func warnUnseen(devices []string) string {
	if len(devices) == 0 {
		return ""
	}
	return fmt.Sprintf("; WARNING: %s: %v: what its holder has not written out yet is not in the copy, and nothing stops it from writing",
		strings.Join(devices, ", "), ErrUnseen)
}

// warnUntold says that there may be more of them.
func warnUntold(err error) string {
	if err == nil {
		return ""
	}
	return fmt.Sprintf("; WARNING: whether somebody unseen uses it cannot be told: %v", err)
}

func names(list []mounts.Filesystem) string {
	var words []string
	for _, f := range list {
		words = append(words, f.String())
	}
	return strings.Join(words, ", ")
}

// idle says why nothing needs to be frozen.
func (s *scene) idle() string {
	if len(s.filesystems) > 0 {
		return "mounted read-only: " + names(s.filesystems)
	}
	return "no filesystem is mounted from it"
}

// warning adds what nothing here can stop.
func (s *scene) warning() string {
	if len(s.swaps) == 0 {
		return ""
	}
	return "; swap in use on it, which nothing stops: " + strings.Join(s.swaps, ", ")
}

// Covered returns, of the paths, those that cannot be written to while the sources
// are frozen: a write to them would pass through a filesystem on the sources, and
// wait for the thaw. Paths need not exist yet; a block device counts as what lies
// below it.
func Covered(sources []*block.Device, paths ...string) ([]string, error) {
	s, err := look(sources)
	if err != nil {
		return nil, err
	}
	frozen := map[sysfs.Dev]bool{}
	for _, f := range s.filesystems {
		frozen[f.Dev] = true
	}
	var covered []string
	for _, p := range paths {
		through, err := s.table.Through(p)
		if err != nil {
			return nil, fmt.Errorf("view: %w", err)
		}
		for _, f := range through {
			if frozen[f.Dev] {
				covered = append(covered, p)
				break
			}
		}
	}
	return covered, nil
}
