package initramfs

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// ErrNoModule says that a kernel has no module of that name.
var ErrNoModule = errors.New("no such module")

// Modules adds kernel modules, each with those it depends on, from the folder of
// one kernel (lib/modules/RELEASE below root), which depmod has been run on. A
// module that is built in is fine. The indexes which modprobe reads come along;
// they still list the modules that were left out.
//
// Modules named in optional may be missing.
func (w *Writer) Modules(root, release string, names, optional []string) error {
	dir := path.Join("lib/modules", release)
	known, err := readModules(filepath.Join(root, dir))
	if err != nil {
		return err
	}
	for _, name := range slices.Concat(names, optional) {
		files, err := known.closure(name)
		if errors.Is(err, ErrNoModule) && slices.Contains(optional, name) {
			continue
		}
		if err != nil {
			return err
		}
		for _, file := range files {
			if err := w.Copy(path.Join(dir, file), filepath.Join(root, dir, file)); err != nil {
				return err
			}
		}
	}
	indexes, err := filepath.Glob(filepath.Join(root, dir, "modules.*"))
	if err != nil {
		return fmt.Errorf("initramfs: %s: %w", dir, err)
	}
	for _, index := range indexes {
		if err := w.Copy(path.Join(dir, filepath.Base(index)), index); err != nil {
			return err
		}
	}
	return nil
}

// modules is what modules.dep and modules.builtin say, by module name.
type modules struct {
	files   map[string]string   // name → path below the release's folder
	needs   map[string][]string // path → paths
	builtin map[string]bool
}

func readModules(dir string) (modules, error) {
	m := modules{files: map[string]string{}, needs: map[string][]string{}, builtin: map[string]bool{}}
	err := eachLine(filepath.Join(dir, "modules.dep"), func(line string) {
		file, deps, _ := strings.Cut(line, ":")
		m.files[moduleName(file)] = file
		m.needs[file] = strings.Fields(deps)
	})
	if err != nil {
		return m, err
	}
	return m, eachLine(filepath.Join(dir, "modules.builtin"), func(line string) {
		m.builtin[moduleName(line)] = true
	})
}

// closure returns the files of a module and of all it needs; none when it is built in.
func (m modules) closure(name string) ([]string, error) {
	name = moduleName(name)
	file, ok := m.files[name]
	switch {
	case ok:
		return append([]string{file}, m.needs[file]...), nil
	case m.builtin[name]:
		return nil, nil
	}
	return nil, fmt.Errorf("initramfs: %s: %w", name, ErrNoModule)
}

// moduleName is the kernel's spelling of the module in a file.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func eachLine(file string, do func(string)) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		do(lines.Text())
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("initramfs: %s: %w", file, err)
	}
	return nil
}
