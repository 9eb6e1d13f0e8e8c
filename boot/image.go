package boot

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path"
	"slices"
	"strings"
	"syscall"
)

// stampName begins the name of an empty file in each initramfs. The hooks that make the
// image put behind it the SHA-256 of the files that the image is made of. So the list
// of an image's files, which the generator's own tool prints whatever the compression,
// tells whether the image was made of the files as they are now.
const stampName = "etc/tidemark/image-"

// sources lists the files whose content decides what the images of a generator do, in
// the order in which the hooks sum them up.
func sources(program string, g Generator) []string {
	all := []string{EarlyProgram(program), TabPath, udevRules}
	for _, p := range g.parts() {
		all = append(all, p.to)
	}
	return all
}

// stamp returns the name that the hooks would put in an image now; "" while one of the
// files is missing, when no image is current.
func (s *System) stamp(program string, g Generator) (string, error) {
	sum := sha256.New()
	for _, name := range sources(program, g) {
		data, err := s.root.ReadFile(inside(name))
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("boot: %w", err)
		}
		fmt.Fprintf(sum, "%x  %s\n", sha256.Sum256(data), name) // as sha256sum prints it
	}
	return fmt.Sprintf("%s%x", stampName, sum.Sum(nil)), nil
}

// lister is the tool of a generator that lists the files of an initramfs.
func (g Generator) lister() string {
	if g == Dracut {
		return "/usr/bin/lsinitrd"
	}
	return "/usr/bin/lsinitramfs"
}

// list returns the names of the files in an image, without a leading slash. The tool is
// the system's own: for a system that does not run it is started with chroot(2).
func (s *System) list(g Generator, image string) ([]string, error) {
	cmd := exec.Cmd{Path: g.lister(), Args: []string{g.lister(), image}, Dir: "/"}
	if !s.Running() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: s.dir}
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w %s", g.lister(), err, bytes.TrimSpace(said.Bytes()))
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) > 0 { // lsinitrd prints mode, owner and time before the name
			names = append(names, inside(fields[len(fields)-1]))
		}
	}
	return names, nil
}

// module returns the kernel module that opens the entries, "" for none: all that others need comes
// with it.
func module(entries []Entry) string {
	if len(entries) == 0 {
		return ""
	}
	if slices.ContainsFunc(entries, func(e Entry) bool { return !e.Linear() }) {
		return "dm-era"
	}
	return "dm-mod"
}

// judge compares the names in an image with the stamps of the generators. module is the
// kernel module that must be there, "" for none.
func judge(names, stamps []string, module string) (ImageState, string) {
	isModule := func(name string) bool { return strings.HasPrefix(path.Base(name), module+".ko") }
	switch {
	case !slices.Contains(names, inside(TabPath)):
		return ImageWithout, "it was made without the devices of the table"
	case module != "" && !slices.ContainsFunc(names, isModule):
		return ImageWithout, "it lacks the kernel module " + module
	case slices.ContainsFunc(stamps, func(stamp string) bool { return slices.Contains(names, stamp) }):
		return ImageCurrent, ""
	}
	return ImageStale, "it was made before the table, the program or a script changed"
}

// builtin reports whether the kernel of an image has the code of a module without it.
func (s *System) builtin(image, module string) bool {
	list, err := s.root.ReadFile("lib/modules/" + releaseOf(image) + "/modules.builtin")
	return err == nil && bytes.Contains(list, []byte("/"+module+".ko"))
}

// releaseOf returns the kernel's release that is in the name of an image.
func releaseOf(image string) string {
	for _, prefix := range [...]string{"initrd.img-", "initramfs-", "initrd-"} {
		image = strings.TrimPrefix(image, prefix)
	}
	return strings.TrimSuffix(image, ".img")
}
