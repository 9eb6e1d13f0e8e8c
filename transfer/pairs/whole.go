package pairs

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tidemark/block"
	"tidemark/linux/blkid"
	"tidemark/transfer/origin"
	"tidemark/transfer/parts"
	"tidemark/transfer/target"
)

// whole sees to it that all devices of what lies on the sources are copied: it adds the
// missing ones, or refuses, or says that a part is copied, as the options want it.
func (s *session) whole(ctx context.Context, pairs []Pair, sources []*block.Device) ([]Pair, []*block.Device, error) {
	for {
		found, err := parts.Of(ctx, sources, s.o.note)
		if err != nil || len(found) == 0 {
			return pairs, sources, err
		}
		switch {
		case s.o.ForcePart:
			for _, p := range found {
				s.o.note("%s: WARNING: copying a part alone: %s", sources[p.Source].Path(), p)
			}
			return pairs, sources, nil
		case !s.o.Whole:
			return nil, nil, parts.Refuse(found, sources)
		}
		before := len(sources)
		for _, p := range found {
			if pairs, sources, err = s.add(ctx, p, pairs, sources); err != nil {
				return nil, nil, err
			}
		}
		if len(sources) == before {
			return nil, nil, parts.Refuse(found, sources)
		}
	}
}

// add makes pairs of what a part is missing.
func (s *session) add(ctx context.Context, p parts.Part, pairs []Pair, sources []*block.Device) ([]Pair, []*block.Device, error) {
	if p.Unknown != "" {
		return nil, nil, parts.Refuse([]parts.Part{p}, sources)
	}
	for _, device := range p.Missing {
		if slices.ContainsFunc(sources, func(o *block.Device) bool { return o.Path() == device }) {
			continue // another part misses it as well
		}
		src, err := s.source(ctx, device)
		if err != nil {
			return nil, nil, err
		}
		image := ""
		if s.vault == nil {
			if image, err = beside(pairs[p.Source].Target, src); err != nil {
				return nil, nil, err
			}
		}
		s.o.note("%s is copied too, to %s: %s lies on it", device, cmp.Or(image, "the vault"), p.Name)
		pairs, sources = append(pairs, Pair{Source: device, Target: image}), append(sources, src)
	}
	return pairs, sources, nil
}

// beside names the image of a device beside that of another: data-vdc1.img beside data.img,
// or what the mirror of that device beside it is called already, whatever the device is
// called now.
func beside(image string, src *block.Device) (string, error) {
	_, tagged := blkid.ParseTag(image)
	if info, err := os.Stat(image); tagged || err == nil && info.Mode().Type() == os.ModeDevice {
		return "", fmt.Errorf("target: %s: %w: no device can be named beside a device: name the target of %s with --pair", image, target.ErrRefused, src.Path())
	}
	end := filepath.Ext(image)
	begin := strings.TrimSuffix(image, end) + "-"
	entries, err := os.ReadDir(filepath.Dir(image))
	if err != nil {
		return "", fmt.Errorf("target: %w", err)
	}
	for _, e := range entries {
		other, ok := strings.CutSuffix(filepath.Join(filepath.Dir(image), e.Name()), target.FolderEnd)
		if !ok || !strings.HasPrefix(other, filepath.Clean(begin)) || !strings.HasSuffix(other, end) {
			continue
		}
		if st, err := target.ReadState(other + target.FolderEnd); err == nil && origin.Same(st.Source, origin.OfDevice(src)) {
			return other, nil
		}
	}
	return begin + filepath.Base(src.Path()) + end, nil
}

// stillWhole says whether a device was added to what lies on the sources while they were
// copied: the copies lack what is on that.
func (s *session) stillWhole() error {
	var sources []*block.Device
	for _, e := range s.ends {
		sources = append(sources, e.source)
	}
	found, err := parts.InUse(sources)
	switch {
	case err != nil:
		return fmt.Errorf("source: whether a device was added meanwhile cannot be told: %w", err)
	case len(found) > 0 && !s.o.ForcePart:
		return fmt.Errorf("a device was added while it was copied: %w", parts.Refuse(found, sources))
	}
	return nil
}
