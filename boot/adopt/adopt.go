// Package adopt judges whether a plain disk or partition can get a linear table of
// device-mapper over it, so that live snapshots can be taken of it, and when.
//
// For most uses, call Judge, and bring the Plan's Entry to the table of package boot. When
// the Plan's InUse is nil, boot.Opener can open it at once; else the next boot does.
//
// The package owns the refusals: what is one of device-mapper's devices already, or part of
// one or of an md array or pool; what is no one's alone (a btrfs on several devices); what
// has no name that lasts; what the settings of the system name in a way that would not
// work any more (References). It changes nothing. Functions may be called by several
// goroutines at once.
package adopt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"tidemark/block"
	"tidemark/boot"
	"tidemark/linux/blkid"
	"tidemark/linux/dm"
	"tidemark/linux/mounts"
	"tidemark/linux/sysfs"
	"tidemark/transfer/inuse"
)

var (
	// ErrMapped says that a device is one of device-mapper's already: snapshots can be taken
	// of it, and nothing is needed.
	ErrMapped = errors.New("it is a device of device-mapper already: nothing is needed")
	// ErrRefused says that a device cannot be adopted.
	ErrRefused = errors.New("it cannot be adopted")
)

// Plan says what adopting a device comes to.
type Plan struct {
	Entry boot.Entry // for the table of package boot
	InUse error      // who uses it, so that it is for the next boot; wraps inuse.ErrInUse. nil: at once
	// References are the settings that name the device by a name that leads past the linear
	// device.
	References []Reference
}

func refused(device, format string, args ...any) error {
	return fmt.Errorf("adopt: %s: %w: %s", device, ErrRefused, fmt.Sprintf(format, args...))
}

// Judge says what adopting the block device at path comes to, under a name in /dev/mapper,
// "" for one made of the kernel's. It returns an error that wraps ErrMapped, ErrRefused or
// boot.ErrNoStableName, or dm.ErrExists when the name is taken. References are left to the caller to refuse.
func Judge(ctx context.Context, path, name string) (Plan, error) {
	id, err := block.Identify(path)
	if err != nil {
		return Plan{}, fmt.Errorf("adopt: %w", err)
	}
	if err := judgeDevice(path, id); err != nil {
		return Plan{}, err
	}
	if err := judgeUse(path, id); err != nil {
		return Plan{}, err
	}
	e := boot.Entry{Name: name}
	if e.Data, err = boot.Resolve(path, false); err != nil {
		return Plan{}, err
	}
	if err := unique(ctx, path, e.Data); err != nil {
		return Plan{}, err
	}
	if name == "" {
		node, err := filepath.EvalSymlinks(path)
		if err != nil {
			return Plan{}, fmt.Errorf("adopt: %w", err)
		}
		e.Name = notInNames.ReplaceAllString(filepath.Base(node), "_")
	}
	if _, err := os.Lstat(e.Path()); err == nil {
		return Plan{}, fmt.Errorf("adopt: %s: %w", e.Path(), dm.ErrExists)
	}
	if e.Stage, err = boot.StageOf(path); err != nil {
		return Plan{}, err
	}
	p := Plan{Entry: e, InUse: inuse.Check(path)}
	if p.InUse != nil && !errors.Is(p.InUse, inuse.ErrInUse) {
		return Plan{}, fmt.Errorf("adopt: %w", p.InUse)
	}
	p.References, err = References("/", path)
	return p, errors.Join(err, e.Check())
}

// notInNames are the letters that boot.Entry takes in no name.
var notInNames = regexp.MustCompile(`[^A-Za-z0-9_.-]`)

// judgeDevice judges a device without looking at what is on it.
func judgeDevice(path string, id block.Identity) error {
	if sysfs.IsMapped(id.Disk) {
		return fmt.Errorf("adopt: %s: %w", path, ErrMapped)
	}
	for _, kind := range [...]string{"loop", "zram", "ram", "nbd"} {
		if strings.HasPrefix(id.Disk, kind) {
			return refused(path, "a %s device is set up anew after each boot, by whoever needs it", kind)
		}
	}
	locked, err := sysfs.Uint(filepath.Join(id.Dev().Dir(), "ro"))
	if err != nil {
		return fmt.Errorf("adopt: %s: %w", path, err)
	}
	if locked != 0 {
		return refused(path, "it is read-only: a snapshot of it would never differ")
	}
	parts, err := filepath.Glob(filepath.Join(id.Dev().Dir(), "*/partition"))
	if err != nil {
		return fmt.Errorf("adopt: %w", err)
	}
	if len(parts) > 0 {
		var names []string
		for _, p := range parts {
			names = append(names, "/dev/"+filepath.Base(filepath.Dir(p)))
		}
		slices.Sort(names)
		return refused(path, "it has partitions; adopt those instead: %s", strings.Join(names, ", "))
	}
	return nil
}

// judgeUse judges what is on a device, and what is made of it.
func judgeUse(path string, id block.Identity) error {
	table, err := mounts.Read()
	if err != nil {
		return fmt.Errorf("adopt: %w", err)
	}
	use, err := table.UseOf(path)
	if err != nil {
		return fmt.Errorf("adopt: %w", err)
	}
	for _, h := range use.Holders {
		switch {
		case strings.HasPrefix(h, "dm-"):
			return refused(path, "it is part of %s; volumes of LVM, of LUKS and the like are devices of device-mapper already, and need no adopting", h)
		case !strings.HasPrefix(h, "loop"):
			return refused(path, "it is part of %s; adopt that", h)
		}
	}
	if len(use.Swaps) > 0 {
		return refused(path, "it is swap")
	}
	for _, fs := range use.Filesystems {
		if slices.Contains(fs.Members, id.Dev()) && len(fs.Members) > 1 {
			return refused(path, "%s lies on %d devices, and a snapshot would be of this one alone", fs, len(fs.Members))
		}
	}
	if len(use.Filesystems) > 0 {
		return nil
	}
	return judgeContent(path)
}

// judgeContent judges what is on a device that nobody uses.
func judgeContent(path string) error {
	dev, err := block.Open(path, block.Options{Direct: true})
	if err != nil {
		return fmt.Errorf("adopt: %w", err)
	}
	defer dev.Close()
	found, err := mounts.Probe(dev, dev.Size())
	if err != nil {
		return fmt.Errorf("adopt: %s: %w", path, err)
	}
	for _, s := range found {
		switch s.Kind {
		case mounts.KindMember:
			return refused(path, "%s: what is made of it is a device of its own (a volume of LVM or LUKS is one of device-mapper already, and needs no adopting)", s)
		case mounts.KindSwap:
			return refused(path, "it is a %s", s)
		}
	}
	super, err := mounts.ReadSuperblock(dev, dev.Size())
	if err != nil {
		return fmt.Errorf("adopt: %s: %w", path, err)
	}
	if super.Devices > 1 {
		return refused(path, "the btrfs on it lies on %d devices, and a snapshot would be of this one alone", super.Devices)
	}
	return nil
}

// unique refuses a PARTUUID that another partition has too, as after a disk was copied.
func unique(ctx context.Context, path, data string) error {
	tag, ok := blkid.ParseTag(data)
	if !ok {
		return nil
	}
	all, err := blkid.Find(ctx, tag)
	if err != nil {
		return fmt.Errorf("adopt: %w", err)
	}
	if len(all) > 1 {
		return refused(path, "%s and %s have the same %s: the next boot may take either (sfdisk --part-uuid gives another)", all[0].Path, all[1].Path, data)
	}
	return nil
}
