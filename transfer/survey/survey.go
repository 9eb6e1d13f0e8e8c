// Package survey tells of the block devices of this machine, as a mirror would judge them.
//
// For most uses, call [Survey]. It changes nothing, and claims no device: a holder that
// cannot be seen does not show. Functions may be called by several goroutines at once.
package survey

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tidemark/block"
	"tidemark/linux/blkid"
	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
	"tidemark/track"
	"tidemark/track/bpf"
	"tidemark/track/era"
	"tidemark/track/thin"
	"tidemark/transfer/origin"
	"tidemark/transfer/parts"
	"tidemark/transfer/tracking"
	"tidemark/view"
	"tidemark/words"
)

// Refused stands for the view of a device that is not copied by itself.
const Refused = "refused"

// Device is what can be done with a block device of this machine. Fields that cannot be told
// are empty; Notes say why.
type Device struct {
	Path  string `json:"path"`
	Size  int64  `json:"size"`           // bytes
	Type  string `json:"type,omitempty"` // of what it holds, as blkid and the kernel call it: "ext4", "gpt"
	Label string `json:"label,omitempty"`
	UUID  string `json:"uuid,omitempty"`
	// Mounted are the mount points of the filesystem on the device itself.
	Mounted []string `json:"mounted"`
	// Instead are the devices on top of it: what is to be copied in its place.
	Instead []string `json:"name_instead"`
	// Tracker and View are what a mirror would choose by itself, or Refused; why is in words.
	Tracker    string `json:"tracker,omitempty"`
	TrackerWhy string `json:"tracker_why,omitempty"`
	View       string `json:"view,omitempty"`
	ViewWhy    string `json:"view_why,omitempty"`
	// Lasting says that marks outlive a reboot, with eBPF a clean one: the run after it reads only
	// what changed.
	Lasting bool `json:"marks_outlive_reboot"`
	// LostAtReboot says why not, where it is tracked by eBPF.
	LostAtReboot string   `json:"lost_at_reboot,omitempty"`
	Notes        []string `json:"notes"`
}

// Options say how a mirror would be made. The zero value works.
type Options struct {
	StateDir string      // target.DefaultStateDir when empty
	Track    bpf.Options // where and how to track
	Tracker  string      // track.KindScan where nothing can be tracked
	// LostAtReboot says why the next reboot loses the marks of a disk that is tracked by eBPF, empty
	// where a clean one keeps them. Without it they count as lost.
	LostAtReboot func(disk string) string
}

// Survey tells of all block devices with a size, as a mirror would judge them. It changes
// nothing, and claims no device: a holder that cannot be seen does not show.
func Survey(ctx context.Context, o Options) ([]Device, error) {
	s := &survey{o: o, known: map[string]blkid.Device{}}
	var err error
	if s.table, err = mounts.Read(); err != nil {
		return nil, fmt.Errorf("survey: %w", err)
	}
	if s.tracked, err = bpf.List(ctx, o.Track); err != nil && !errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("survey: %w", err)
	}
	listed, err := blkid.List(ctx)
	if err != nil {
		s.missing = "what it holds is not known: " + err.Error()
	}
	for _, d := range listed {
		s.known[d.Path] = d
	}
	entries, err := os.ReadDir("/sys/class/block")
	if err != nil {
		return nil, fmt.Errorf("survey: %w", err)
	}
	devices := []Device{}
	for _, e := range entries {
		d, err := s.device(ctx, e.Name())
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, origin.ErrNoSize) {
			continue // gone in between, or without a node
		}
		if err != nil {
			return nil, fmt.Errorf("survey: %s: %w", e.Name(), err)
		}
		if d.Size > 0 {
			devices = append(devices, d)
		}
	}
	return devices, nil
}

// survey is one look at the machine.
type survey struct {
	o       Options
	table   *mounts.Table
	tracked []bpf.Status
	known   map[string]blkid.Device // by path
	missing string                  // why nothing is known
}

func (s *survey) device(ctx context.Context, name string) (Device, error) {
	text, err := sysfs.Text(filepath.Join("/sys/class/block", name, "dev"))
	if err != nil {
		return Device{}, err
	}
	dev, err := sysfs.ParseDev(text)
	if err != nil {
		return Device{}, err
	}
	id, err := block.IdentifyDev(dev)
	if err != nil || id.Size == 0 || id.Path == "" {
		return Device{}, err
	}
	d := Device{Path: id.Path, Size: id.Size, Mounted: []string{}, Instead: []string{}, Notes: []string{}}
	if err := s.contents(&d, id); err != nil {
		return d, err
	}
	src, err := origin.Open(id.Path)
	var path *fs.PathError
	if errors.As(err, &path) {
		d.note("this user cannot read it, so that nothing more is known: %v", path.Err)
		return d, nil
	}
	if err != nil {
		return d, err
	}
	defer src.Close()
	if d.Type == "" {
		// blkid does not list a disk for its partition table.
		if found, err := mounts.Probe(src, src.Size()); err == nil && len(found) > 0 {
			d.Type = found[0].Name
		}
	}
	s.judgeView(ctx, &d, src)
	s.judgeTracker(ctx, &d, src)
	return d, nil
}

func (d *Device) note(format string, args ...any) {
	d.Notes = append(d.Notes, fmt.Sprintf(format, args...))
}

// contents tells what is on a device.
func (s *survey) contents(d *Device, id block.Identity) error {
	known := s.known[d.Path]
	d.Type, d.Label, d.UUID = known.Type, known.Label, known.UUID
	if s.missing != "" {
		d.note("%s", s.missing)
	}
	on, err := s.table.On(id.Dev())
	if err != nil {
		return err
	}
	for _, f := range on {
		if !slices.Contains(f.Members, id.Dev()) {
			continue
		}
		if d.Type == "" {
			d.Type = f.Type
		}
		for _, m := range f.Mounts {
			if m.PID == 0 {
				d.Mounted = append(d.Mounted, m.Point)
			}
		}
	}
	if file, err := sysfs.Text(filepath.Join(sysfs.DiskDir(id.Disk), "loop/backing_file")); err == nil {
		d.note("a loop device over %s", file)
	}
	return s.onTop(d, id)
}

// onTop tells what is made of a device.
func (s *survey) onTop(d *Device, id block.Identity) error {
	over, err := s.table.Over(id.Dev())
	if err != nil {
		return err
	}
	for _, o := range over {
		if path, err := sysfs.Node(o); err == nil {
			d.Instead = append(d.Instead, path)
		}
	}
	if d.Type == "swap" {
		d.note("swap: nothing of it is worth a copy")
	}
	return nil
}

// whatItIs explains, in words, what is a member of something else.
func whatItIs(kind string) string {
	switch kind {
	case "crypto_LUKS":
		return "encrypted (LUKS)"
	case "LVM2_member":
		return "a physical volume of LVM"
	case "linux_raid_member", "isw_raid_member", "ddf_raid_member":
		return "a member of a RAID (md)"
	case "bcache":
		return "a member of a bcache"
	case "zfs_member":
		return "a member of a ZFS pool"
	}
	return ""
}

// judgeView tells which view a mirror would take, or why none.
func (s *survey) judgeView(ctx context.Context, d *Device, src *block.Device) {
	what := whatItIs(d.Type)
	found, err := parts.Of(ctx, []*block.Device{src}, d.note)
	switch {
	case err != nil:
		d.View, d.ViewWhy = Refused, err.Error()
	case len(found) > 0:
		d.View, d.ViewWhy = Refused, parts.Describe(found)
	case d.Type == "zfs_member":
		d.View, d.ViewWhy = Refused, "the pool cannot be frozen: export it and choose the view by hand"
	default:
		if d.View, d.ViewWhy, err = view.Foresee([]*block.Device{src}); err != nil {
			d.View, d.ViewWhy = Refused, err.Error()
		}
	}
	switch {
	case len(d.Instead) > 0:
		if what == "" {
			what = "in use by what lies over it"
		}
		d.note("%s: name %s, on top", what, strings.Join(d.Instead, " or "))
	case what != "":
		d.note("%s, which is not in use here", what)
	}
}

// judgeTracker tells what a mirror would find out changes by.
func (s *survey) judgeTracker(ctx context.Context, d *Device, src *block.Device) {
	if s.o.Tracker == track.KindScan {
		d.Tracker, d.TrackerWhy = track.KindScan, "nothing can be tracked here: see above"
		return
	}
	if d.View != Refused && thin.Judge(src) == nil {
		d.Tracker, d.TrackerWhy, d.Lasting = thin.Kind, "a thin volume: its pool tells what differs between two snapshots, over reboots too", true
		d.View, d.ViewWhy = thin.Kind, "a snapshot in its pool"
		return
	}
	o := tracking.Options{Track: s.o.Track, Tracker: s.o.Tracker, StateDir: s.o.StateDir, Note: d.note}
	e, err := o.Era(ctx, src, "")
	if e != nil {
		err = errors.Join(err, e.Close())
	}
	if e != nil && err == nil {
		d.Tracker, d.TrackerWhy, d.Lasting = era.Kind, "a dm-era device: its eras outlive reboots and power cuts", true
		return
	}
	if err == nil {
		err = bpf.Fits(src)
	}
	if err != nil {
		d.Tracker, d.TrackerWhy = track.KindScan, err.Error()
		return
	}
	d.Tracker = bpf.Kind
	if s.o.LostAtReboot != nil {
		d.LostAtReboot = s.o.LostAtReboot(src.Identity().Disk)
		d.Lasting = d.LostAtReboot == ""
	}
	i := slices.IndexFunc(s.tracked, func(t bpf.Status) bool { return t.Disk == src.Identity().Disk })
	switch {
	case i < 0:
		d.TrackerWhy = "the first mirror starts it"
	case s.tracked[i].Lost != "":
		d.TrackerWhy = "tracked, but all marks are lost: " + s.tracked[i].Lost
	default:
		d.TrackerWhy = "tracked since " + words.Time(s.tracked[i].Since)
	}
}
