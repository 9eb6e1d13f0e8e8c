package parts

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"tidemark/linux/blkid"
	"tidemark/transfer/names"
)

// idleParts finds, by their superblocks, what lies on the sources and on other devices too
// and is not in use. Only where something does, blkid is asked for the others.
func (h *holding) idleParts(ctx context.Context) ([]Part, error) {
	a := asking{h, sync.OnceValues(func() ([]blkid.Device, error) { return blkid.List(ctx) })}
	var parts []Part
	for i, s := range h.supers {
		if slices.ContainsFunc(h.supers[:i], func(e super) bool { return e.Type == s.Type && e.UUID == s.UUID && e.UUID != "" }) {
			continue // told already
		}
		p, err := a.partOf(s)
		if err != nil {
			return nil, err
		}
		if p.Source = s.source; len(p.Missing) > 0 || p.Unknown != "" {
			parts = append(parts, p)
		}
	}
	return parts, nil
}

// asking asks blkid for all devices once, when it is needed.
type asking struct {
	*holding
	list func() ([]blkid.Device, error)
}

func (a asking) partOf(s super) (Part, error) {
	switch {
	case s.Type == "btrfs" && s.Devices > 1:
		return a.btrfs(s)
	case s.Type == "xfs":
		return a.xfs(s)
	case s.Type == "xfs_external_log":
		return a.users("log of an XFS", s, func(o super) bool { return o.Type == "xfs" && o.UUID == s.UUID },
			func(d blkid.Device) bool { return d.Type == "xfs" && d.UUID == s.UUID })
	case s.Type == "ext" && s.Journal != "":
		p := Part{Name: "ext filesystem " + s.UUID}
		return a.one(p, "its journal "+s.Journal, func(o super) bool { return o.Type == "jbd" && o.UUID == s.Journal },
			func(d blkid.Device) bool { return d.Type == "jbd" && d.LogUUID == s.Journal })
	case s.Type == "jbd":
		return a.users("journal of an ext filesystem", s, func(o super) bool { return o.Type == "ext" && o.Journal == s.UUID },
			func(d blkid.Device) bool { return d.Journal == s.UUID })
	case s.member != "":
		return a.member(s)
	}
	return Part{}, nil
}

// btrfs looks for the members that no source holds.
func (a asking) btrfs(s super) (Part, error) {
	p := Part{Name: fmt.Sprintf("btrfs %s of %d devices", s.UUID, s.Devices)}
	have := map[string]bool{}
	for _, other := range a.supers {
		if other.Type == s.Type && other.UUID == s.UUID {
			have[other.Member] = true
		}
	}
	if uint64(len(have)) >= s.Devices {
		return Part{}, nil
	}
	all, err := a.list()
	if err != nil {
		return p, fmt.Errorf("%s: %w", p.Name, err)
	}
	members := map[string][]blkid.Device{}
	for _, d := range all {
		if d.Type == s.Type && d.UUID == s.UUID && !have[d.SubUUID] {
			members[d.SubUUID] = append(members[d.SubUUID], d)
		}
	}
	for _, same := range members {
		if err := p.miss(same); err != nil {
			return p, err
		}
	}
	slices.Sort(p.Missing)
	if found := uint64(len(have) + len(members)); found < s.Devices {
		p.lack(fmt.Sprintf("%d of its devices, which cannot be found here", s.Devices-found))
	}
	return p, nil
}

// miss adds one device, which may have copies that cannot be told from it.
func (p *Part) miss(same []blkid.Device) error {
	paths, err := names.Topmost(same)
	if err != nil {
		return err
	}
	if len(paths) == 1 {
		p.Missing = append(p.Missing, paths[0])
	} else {
		p.lack("one of " + strings.Join(paths, " and ") + ", which are copies of each other")
	}
	return nil
}

func (p *Part) lack(text string) {
	if p.Unknown != "" {
		text = p.Unknown + ", " + text
	}
	p.Unknown = text
}

func (a asking) xfs(s super) (p Part, err error) {
	p.Name = "xfs " + s.UUID
	if s.ExternalLog {
		p, err = a.one(p, "its log", func(o super) bool { return o.Type == "xfs_external_log" && o.UUID == s.UUID },
			func(d blkid.Device) bool { return d.Type == "xfs_external_log" && d.LogUUID == s.UUID })
	}
	if s.RealTime {
		p.lack("its real-time device, of which only its mount tells which it is")
	}
	return p, err
}

// one looks for the one device that something needs: on the sources, or else anywhere.
func (a asking) one(p Part, what string, have func(super) bool, is func(blkid.Device) bool) (Part, error) {
	if slices.ContainsFunc(a.supers, have) {
		return p, nil
	}
	found, err := a.others(is)
	switch {
	case err != nil:
		return p, fmt.Errorf("%s: %w", p.Name, err)
	case len(found) == 0:
		p.lack(what + ", which cannot be found here")
		return p, nil
	}
	return p, p.miss(found)
}

// users looks for the filesystem that a log or journal belongs to. One that belongs to none
// that is here is all that there is.
func (a asking) users(name string, s super, have func(super) bool, is func(blkid.Device) bool) (Part, error) {
	p := Part{Name: name + " " + s.UUID}
	if slices.ContainsFunc(a.supers, have) {
		return p, nil
	}
	found, err := a.others(is)
	if err != nil || len(found) == 0 {
		return p, err
	}
	return p, p.miss(found)
}

func (a asking) others(is func(blkid.Device) bool) ([]blkid.Device, error) {
	all, err := a.list()
	var found []blkid.Device
	for _, d := range all {
		if is(d) {
			found = append(found, d)
		}
	}
	return found, err
}

// member looks for the other members of what is not assembled, as far as they name it.
func (a asking) member(s super) (Part, error) {
	p := Part{Name: s.member + " on " + s.path}
	all, err := a.list()
	if err != nil {
		return p, fmt.Errorf("%s: %w", p.Name, err)
	}
	own := slices.IndexFunc(all, func(d blkid.Device) bool { return d.Path == s.path })
	if s.member == "LVM2_member" || own < 0 || all[own].UUID == "" || all[own].SubUUID == "" {
		a.note("%s: it holds %s, of something that is not in use: whether that lies on other devices as well cannot be told", s.path, s.member)
		return p, nil
	}
	p.Name += " (UUID " + all[own].UUID + ")"
	members := map[string][]blkid.Device{}
	for _, d := range all {
		if d.Type == all[own].Type && d.UUID == all[own].UUID && d.SubUUID != all[own].SubUUID && !a.holds(d.Path) {
			members[d.SubUUID] = append(members[d.SubUUID], d)
		}
	}
	for _, same := range members {
		if err := p.miss(same); err != nil {
			return p, err
		}
	}
	slices.Sort(p.Missing)
	return p, nil
}

// holds reports whether a source holds the device at path.
func (a asking) holds(path string) bool {
	return slices.ContainsFunc(a.supers, func(s super) bool { return s.path == path })
}
