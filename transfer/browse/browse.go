// Package browse shows the files of disk images, read-only.
//
// For most uses, call [Mount] with the path of an image or device and that of a folder, and
// later [Unmount] with the folder.
//
// The package owns what differs from one filesystem to the next: which options keep the
// kernel from replaying a journal, and what cannot be mounted beside its original. It finds
// the partitions of a disk with sfdisk(8), and what they hold with blkid(8). Everything is
// mounted from read-only loop devices, which detach themselves: nothing of an image is ever
// changed, and umount(8) undoes all of it as well. No record is kept; what is ours is known
// by the name of its loop device. The package does not look at who else uses an image: that
// is its caller's task. Functions may be called by several goroutines at once, for different
// folders.
package browse

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/linux/blkid"
	"tidemark/linux/layout"
	"tidemark/linux/loop"
)

var (
	// ErrNothing says that there is nothing that can be mounted.
	ErrNothing = errors.New("nothing in it can be mounted")
	// ErrOriginal says that a filesystem cannot be mounted on this machine while others
	// with its UUID are.
	ErrOriginal = errors.New("it cannot be mounted beside its original")
	// ErrMounted says that a folder shows an image already.
	ErrMounted = errors.New("an image is mounted there already")
	// ErrNotOurs says that what is mounted on a folder, or below it, was not mounted by
	// this package.
	ErrNotOurs = errors.New("it was not mounted by tidemark mount")
	// ErrBusy says that programs use the files.
	ErrBusy = errors.New("a program uses its files")
)

// Options say what to mount. The zero value is all that there is.
type Options struct {
	Partition int // the only one to mount; 0 is any
	// Note is called with what a user should know, in words. It may be nil.
	Note func(text string)
}

// Shown is a filesystem that is mounted.
type Shown struct {
	Dir       string `json:"dir"`
	Partition int    `json:"partition,omitempty"` // its number; 0 for an image without partitions
	Type      string `json:"type"`
	Options   string `json:"options"`
}

// volume is a part of an image that may hold a filesystem.
type volume struct {
	layout.Partition
	held blkid.Device
	why  error // why it cannot be mounted
}

func (v volume) String() string {
	if v.Number == 0 {
		return cmp.Or(v.held.Type, "the image")
	}
	return fmt.Sprintf("partition %d (%s)", v.Number, cmp.Or(v.held.Type, "nothing that is known"))
}

// picture is an image that is open.
type picture struct {
	disk *block.Device
	path string
}

// Mount mounts the filesystem of an image or device on dir, or, when there are several, each
// on a folder of its own: dir/p1 for that of the first partition. What cannot be mounted is
// told and left out; if nothing can, the error says why. The error wraps ErrNothing,
// ErrOriginal, ErrMounted, loop.ErrNotSupported, or one of package blkid or layout.
func Mount(ctx context.Context, image, dir string, o Options) (shown []Shown, err error) {
	if o.Note == nil {
		o.Note = func(string) {}
	}
	if dir, err = folder(dir); err != nil {
		return nil, err
	}
	if at, err := top(dir); err != nil || at != nil && at.ours {
		return nil, cmp.Or(err, fmt.Errorf("%s: %w", dir, ErrMounted))
	}
	p := &picture{path: image}
	if p.disk, err = block.Open(image, block.Options{}); err != nil {
		return nil, err
	}
	defer p.disk.Close()
	volumes, err := p.volumes(ctx, o.Partition)
	if err != nil {
		return nil, err
	}
	var fit []volume
	for _, v := range volumes {
		if v.why == nil {
			fit = append(fit, v)
		}
	}
	if len(fit) > 0 {
		shown, fit, err = p.show(dir, fit, o)
		if err != nil {
			return nil, err
		}
	}
	return shown, tell(image, volumes, fit, len(shown) > 0, o.Note)
}

// tell tells what was not mounted, as an error where nothing was.
func tell(image string, volumes, tried []volume, some bool, note func(string)) error {
	var words []string
	var class error = ErrNothing
	for _, v := range append(tried, volumes...) {
		if v.why == nil {
			continue
		}
		text := fmt.Sprintf("%v: %v", v, v.why)
		if some {
			note(image + ": not mounted: " + text)
		}
		if words = append(words, text); errors.Is(v.why, ErrOriginal) {
			class = ErrOriginal
		}
	}
	if some {
		return nil
	}
	return &refusal{class, fmt.Sprintf("%s: %s", image, strings.Join(words, "; "))}
}

// refusal is why nothing was mounted.
type refusal struct {
	class error
	text  string
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.class }

// volumes lists what an image has, or its partition of that number, and judges each.
func (p *picture) volumes(ctx context.Context, number int) ([]volume, error) {
	parts, err := p.partitions(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.path, err)
	}
	if number != 0 {
		var numbers []string
		var only []layout.Partition
		for _, part := range parts {
			if part.Number == number {
				only = append(only, part)
			}
			numbers = append(numbers, fmt.Sprint(part.Number))
		}
		if len(only) == 0 && parts[0].Number == 0 {
			return nil, fmt.Errorf("%s: %w: it has no partition table, and so no partition %d", p.path, ErrNothing, number)
		}
		if len(only) == 0 {
			return nil, fmt.Errorf("%s: %w: it has no partition %d, but %s", p.path, ErrNothing, number, strings.Join(numbers, ", "))
		}
		parts = only
	}
	var all []volume
	for _, part := range parts {
		v := volume{Partition: part}
		if end := part.End(); part.Off > p.disk.Size() || end > p.disk.Size() {
			v.why = fmt.Errorf("it ends at byte %d, past the end of the image at %d", end, p.disk.Size())
		} else if v.held, v.why = blkid.Probe(ctx, p.path, part.Off, part.Len); errors.Is(v.why, blkid.ErrMissing) {
			return nil, v.why
		} else if v.why == nil {
			v.why = p.judge(v)
		}
		all = append(all, v)
	}
	return all, ctx.Err()
}

// partitions lists the partitions of the image, or all of it where there is no table.
func (p *picture) partitions(ctx context.Context) ([]layout.Partition, error) {
	whole := []layout.Partition{{Extent: extent.Extent{Len: p.disk.Size()}}}
	held, err := blkid.Probe(ctx, p.path, 0, p.disk.Size())
	if err != nil {
		return nil, err
	}
	protected := held.Table == "PMBR" // the first sector of a GPT, of which there is no more
	if held.Table != "" && !protected {
		return parts(ctx, p.path)
	}
	if held.Type != "" || p.disk.IsDevice() {
		return whole, nil
	}
	// The partition table of a disk with larger sectors is not where it is looked for.
	const large = 4096
	if p.disk.Size()%large != 0 {
		return whole, nil
	}
	d, err := loop.Attach(p.disk.File(), loop.Options{SectorSize: large, Name: mark})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if held, err = blkid.Probe(ctx, d.Path, 0, p.disk.Size()); err != nil || held.Table == "" {
		return whole, err
	}
	return parts(ctx, d.Path)
}

func parts(ctx context.Context, path string) ([]layout.Partition, error) {
	all, err := layout.Partitions(ctx, path)
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("%w: its partition table is empty", ErrNothing)
	}
	return all, err
}

// show mounts the volumes, and undoes all of it where an error is not about one volume.
// It returns the volumes with why they could not be mounted.
func (p *picture) show(dir string, volumes []volume, o Options) (shown []Shown, tried []volume, err error) {
	several := len(volumes) > 1
	if several {
		if err := shelf(dir, volumes); err != nil {
			return nil, nil, err
		}
	}
	for _, v := range volumes {
		at := dir
		if several {
			at = filepath.Join(dir, fmt.Sprintf("p%d", v.Number))
		}
		s, err := p.mount(v, at, o)
		if v.why = err; err == nil {
			shown = append(shown, s)
		}
		if tried = append(tried, v); errors.Is(err, loop.ErrNotSupported) {
			break
		}
	}
	if several && len(shown) == 0 {
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	}
	if n := len(tried); n > 0 && errors.Is(tried[n-1].why, loop.ErrNotSupported) {
		err = tried[n-1].why
	}
	return shown, tried, err
}

// shelf mounts a small filesystem with a folder for each volume over dir, which may itself
// be read-only.
func shelf(dir string, volumes []volume) error {
	if err := unix.Mount(mark, dir, "tmpfs", safe, "size=64k,mode=0755"); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
	}
	var errs []error
	for _, v := range volumes {
		errs = append(errs, os.Mkdir(filepath.Join(dir, fmt.Sprintf("p%d", v.Number)), 0o755))
	}
	errs = append(errs, unix.Mount("", dir, "", safe|unix.MS_REMOUNT|unix.MS_RDONLY, "size=64k,mode=0755"))
	if err := errors.Join(errs...); err != nil {
		return errors.Join(err, unix.Unmount(dir, unix.UMOUNT_NOFOLLOW))
	}
	return nil
}

// safe is for filesystems of which nobody knows what they hold.
const safe = unix.MS_NOSUID | unix.MS_NODEV

// mount mounts one volume.
func (p *picture) mount(v volume, at string, o Options) (Shown, error) {
	d, err := loop.Attach(p.disk.File(), loop.Options{Off: v.Off, Len: v.Len, Name: mark})
	if err != nil {
		return Shown{}, err
	}
	defer d.Close() // the mount keeps it
	kind, err := p.kind(v)
	if err == nil && v.held.Type == "btrfs" {
		err = forget(d.Path)
	}
	if err != nil {
		return Shown{}, err
	}
	for _, name := range kind.names {
		err = unix.Mount(d.Path, at, name, unix.MS_RDONLY|safe, kind.options)
		if err == nil {
			if kind.note != "" {
				o.Note(fmt.Sprintf("%s: %v: %s", at, v, kind.note))
			}
			return Shown{Dir: at, Partition: v.Number, Type: name, Options: strings.TrimSuffix("ro,nosuid,nodev,"+kind.options, ",")}, nil
		}
		if !errors.Is(err, unix.ENODEV) {
			break
		}
	}
	switch {
	case errors.Is(err, unix.ENODEV):
		err = fmt.Errorf("this kernel does not know %s", strings.Join(kind.names, " or "))
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
	default:
		err = fmt.Errorf("%w (dmesg says more)", err)
	}
	return Shown{}, fmt.Errorf("mount on %s: %w", at, err)
}

// folder returns the folder at dir, absolute and without symbolic links.
func folder(dir string) (string, error) {
	path, err := filepath.Abs(dir)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%s: %w", dir, unix.ENOTDIR)
	}
	return path, nil
}
