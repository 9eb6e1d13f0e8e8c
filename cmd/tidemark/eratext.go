package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"tidemark/linux/atomicfile"
)

// writeText lets fill write to the file at path, or to stdout when path is
// empty. A regular file becomes the new one at once, and only when fill
// succeeds; until then, also at a power cut, it is the old one. The metadata
// that is read, and block devices, are refused.
func writeText(stdout io.Writer, path string, input *metadataInput, fill func(io.Writer) error) error {
	if path == "" || isStdout(path, stdout) {
		return buffered(stdout, fill)
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return replaceFile(path, nil, fill)
	case err != nil:
		return fmt.Errorf("era: output: %w", err)
	case info.Mode().Type() == os.ModeDevice:
		return fmt.Errorf("era: output %s: %w: text does not go to a block device", path, errOutput)
	case !info.Mode().IsRegular():
		return writeStream(path, fill)
	}
	if same, err := sameFile(path, input.dev.File()); err != nil || same {
		return errors.Join(err, fmt.Errorf("era: output %s: %w: it is the input", path, errOutput))
	}
	return replaceFile(path, info, fill)
}

// isStdout says whether path is another name of stdout, as /dev/stdout.
func isStdout(path string, stdout io.Writer) bool {
	f, ok := stdout.(*os.File)
	if !ok {
		return false
	}
	same, err := sameFile(path, f)
	return err == nil && same
}

func buffered(w io.Writer, fill func(io.Writer) error) error {
	b := bufio.NewWriterSize(w, 64<<10)
	if err := fill(b); err != nil {
		_ = b.Flush() // what there is, for whoever looks at it; err says that it is not all
		return err
	}
	return b.Flush()
}

// writeStream writes to what is neither file nor disk, as a pipe.
func writeStream(path string, fill func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("era: output: %w", err)
	}
	return errors.Join(buffered(f, fill), f.Close())
}

// replaceFile replaces the file at path. info is that of the file that is there, nil
// without one.
func replaceFile(path string, info fs.FileInfo, fill func(io.Writer) error) error {
	err := atomicfile.Write(path, atomicfile.Options{Mode: 0o666, Durable: true}, func(f *os.File) error {
		if info != nil {
			if err := f.Chmod(info.Mode().Perm()); err != nil {
				return err
			}
		}
		return buffered(f, fill)
	})
	if err != nil {
		return fmt.Errorf("era: output: %w", err)
	}
	return nil
}

// jsonList writes one object with a list in it, an element a line, without
// holding the list in memory. It is complete, and JSON, only after end.
type jsonList struct {
	w     io.Writer
	head  string // from { to the list's [
	count int
}

func (l *jsonList) add(element []byte) error {
	before := ",\n"
	if l.count == 0 {
		before = l.head + "\n"
	}
	l.count++
	if _, err := io.WriteString(l.w, before); err != nil {
		return err
	}
	_, err := l.w.Write(element)
	return err
}

// addValue adds v as JSON has it.
func (l *jsonList) addValue(v any) error {
	element, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return l.add(element)
}

// end closes the list and writes what follows it, up to the object's }.
func (l *jsonList) end(tail string) error {
	if l.count == 0 {
		tail = l.head + "]" + tail
	} else {
		tail = "]" + tail
	}
	_, err := io.WriteString(l.w, tail+"\n")
	return err
}

// endSummary closes the list of faults of a check.
func (l *jsonList) endSummary(ok bool, sum any) error {
	text, err := json.Marshal(sum)
	if err != nil {
		return err
	}
	return l.end(fmt.Sprintf(`,"ok":%t,"summary":%s}`, ok, text))
}
