package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
)

// Apply carries out a plan. When the plan refuses a file it does nothing. After an error
// or a power cut each file is old or new, and a new Plan and Apply go on from there.
func (s *System) Apply(p Plan) error {
	if err := p.Refused(); err != nil {
		return err
	}
	if !p.Changes() {
		return nil
	}
	known, err := readRecord(s.root)
	if err != nil {
		return err
	}
	// While files are replaced the record knows both contents of each: after a cut every
	// file is still known as ours.
	if err := s.writeRecord(known.with(p.next)); err != nil {
		return err
	}
	for _, step := range p.Steps {
		if err := s.do(step); err != nil {
			return fmt.Errorf("boot: %w", err)
		}
	}
	if len(p.next.Sums) == 0 {
		return s.remove(recordPath)
	}
	return s.writeRecord(p.next)
}

func (s *System) do(step Step) error {
	switch step.Action {
	case Write:
		return s.write(step.File)
	case Remove:
		return s.remove(step.File.Path)
	}
	return nil
}

func (s *System) writeRecord(r record) error {
	f, err := r.file()
	if err == nil {
		err = s.write(f)
	}
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	return nil
}

// write puts a file in place: it writes beside the name, syncs, renames, and syncs the
// folder. A power cut leaves the old file or the new.
func (s *System) write(f File) error {
	name := inside(f.Path)
	if err := s.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	// dracut, initramfs-tools, udev and systemd ignore a hidden name with such a suffix.
	beside := path.Join(path.Dir(name), "."+path.Base(name)+".tidemark-new")
	if err := s.root.Remove(beside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.create(beside, f); err != nil {
		return errors.Join(err, s.root.Remove(beside))
	}
	if err := s.root.Rename(beside, name); err != nil {
		return errors.Join(err, s.root.Remove(beside))
	}
	return s.syncDir(path.Dir(name))
}

func (s *System) create(name string, f File) error {
	if f.Link != "" {
		return s.root.Symlink(f.Link, name)
	}
	file, err := s.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, f.Mode)
	if err != nil {
		return err
	}
	_, err = file.Write(f.Data)
	return errors.Join(err, file.Chmod(f.Mode), file.Sync(), file.Close())
}

func (s *System) syncDir(name string) error {
	dir, err := s.root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// remove removes a file, and then its folder when the folder is one of ours and empty.
func (s *System) remove(p string) error {
	name := inside(p)
	if err := s.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir := path.Dir(name)
	if path.Base(dir) == path.Base(dracutDir) || path.Base(dir) == path.Base(path.Dir(TabPath)) || strings.HasSuffix(dir, ".service.d") {
		if err := s.root.Remove(dir); err == nil {
			dir = path.Dir(dir)
		}
	}
	err := s.syncDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
