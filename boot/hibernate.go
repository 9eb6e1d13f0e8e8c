package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// A kernel that is resumed goes on with the metadata that it had in memory, and so
// writes over what the initramfs has let the kernel before it write.

// swsuspMagic is HIBERNATE_SIG of kernel/power/swap.c, in the last ten bytes of the
// first page of a swap area.
const swsuspMagic = "S1SUSPEND"

var (
	noResume    = regexp.MustCompile(`(^|[\s"'=])noresume($|[\s"'])`)
	resumeParam = regexp.MustCompile(`(^|[\s"'=])resume=`)
	resumeSet   = regexp.MustCompile(`(?m)^\s*(?:export\s+)?RESUME=["']?([^\s"'#;]*)`)
	fstabSwap   = regexp.MustCompile(`(?m)^\s*(UUID=|LABEL=|PARTUUID=|PARTLABEL=|/dev/)\S+\s+\S+\s+swap\s`)
	// confName is of the files that mkinitramfs reads, unless dpkg left them.
	confName = regexp.MustCompile(`^[[:alnum:]][[:alnum:]._-]*$`)
	// shellWord is what a shell takes for a whole before it looks for comments, or one.
	shellWord = regexp.MustCompile(`(?m)"(?:\\(?s:.)|[^"\\])*"|'[^']*'|\\(?s:.)|(?:^|[\s;])#.*`)
)

// Hibernation returns why the system may be resumed from hibernation by its initramfs,
// an error that wraps ErrHibernation; nil when it is not.
func (s *System) Hibernation() error {
	command, err := s.contents("etc/default/grub", "etc/kernel/cmdline")
	command = uncommented(command)
	if err == nil && s.Running() {
		var now []byte
		now, err = os.ReadFile("/proc/cmdline")
		command += string(now)
	}
	if err != nil {
		return err
	}
	device, file, err := s.resume()
	if err != nil {
		return err
	}
	tab, err := s.contents("etc/fstab")
	if err != nil {
		return err
	}
	why := ""
	switch {
	case noResume.MatchString(command):
	case resumeParam.MatchString(command):
		why = "the kernel's command line has resume="
	case device == "none":
	case device != "" && device != "auto":
		why = "/" + file + " names a device"
	case fstabSwap.MatchString(tab):
		why = "/etc/fstab names a swap device, which the initramfs resumes from by itself"
	}
	if why == "" {
		return nil
	}
	return fmt.Errorf("boot: %w: %s", ErrHibernation, why)
}

// uncommented takes the comments out of a shell script.
func uncommented(script string) string {
	return shellWord.ReplaceAllStringFunc(script, func(word string) string {
		if strings.HasPrefix(strings.TrimLeft(word, " \t\n;"), "#") {
			return "\n"
		}
		return word
	})
}

// resume returns what mkinitramfs takes RESUME for, and the file that says so: it reads
// one after the other, so the last one counts.
func (s *System) resume() (device, file string, err error) {
	const dir = "etc/initramfs-tools"
	names := []string{dir + "/initramfs.conf"}
	extra, err := fs.ReadDir(s.root.FS(), dir+"/conf.d")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", fmt.Errorf("boot: %w", err)
	}
	for _, e := range extra {
		if !e.IsDir() && confName.MatchString(e.Name()) && !strings.Contains(e.Name(), ".dpkg-") {
			names = append(names, dir+"/conf.d/"+e.Name())
		}
	}
	for _, name := range names {
		text, err := s.contents(name)
		if err != nil {
			return "", "", err
		}
		for _, found := range resumeSet.FindAllStringSubmatch(text, -1) {
			device, file = found[1], name
		}
	}
	return device, file, nil
}

// contents joins those of the files that are there.
func (s *System) contents(names ...string) (string, error) {
	var all strings.Builder
	for _, name := range names {
		data, err := s.root.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("boot: %w", err)
		}
		all.Write(data)
		all.WriteByte('\n')
	}
	return all.String(), nil
}

// Hibernated fails with ErrHibernation when a hibernated system waits on a block device
// of this machine, a swap partition mostly, unless the kernel was told to leave it alone.
// One that waits in a swap file is not seen. It is for an initramfs: later no such system
// is resumed any more.
func Hibernated() error {
	command, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	if noResume.Match(command) {
		return nil
	}
	disks, err := filepath.Glob("/sys/class/block/*")
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	for _, disk := range disks {
		path := filepath.Join("/dev", filepath.Base(disk))
		if isHibernated(path) {
			return fmt.Errorf("boot: %w: a hibernated system waits on %s; noresume on the kernel's command line gives it up", ErrHibernation, path)
		}
	}
	return nil
}

// isHibernated looks for the signature. A device that cannot be read has none.
func isHibernated(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	magic := make([]byte, len(swsuspMagic))
	_, err = f.ReadAt(magic, int64(os.Getpagesize()-10))
	return err == nil && string(magic) == swsuspMagic
}
