package atomicfile_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/linux/atomicfile"
)

type content struct {
	Name  string `json:"name"`
	Count int    `json:"count"`
}

func Example() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "record.json")
	if err := atomicfile.WriteJSON(path, atomicfile.Options{Durable: true}, content{"disk", 3}); err != nil {
		fmt.Println(err)
		return
	}
	var c content
	fmt.Println(atomicfile.ReadJSON(path, &c), c.Name, c.Count)
	// Output: <nil> disk 3
}

func TestAFailedWriteLeavesTheOldFileAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for _, durable := range []bool{false, true} {
		o := atomicfile.Options{Durable: durable, Mode: 0o640}
		if err := atomicfile.WriteJSON(path, o, content{"old", 1}); err != nil {
			t.Fatal(err)
		}
		failed := errors.New("failed")
		err := atomicfile.Write(path, o, func(f *os.File) error {
			_, err := f.WriteString("half")
			return errors.Join(err, failed)
		})
		if !errors.Is(err, failed) {
			t.Errorf("write: %v", err)
		}
		var c content
		if err := atomicfile.ReadJSON(path, &c); err != nil || c != (content{"old", 1}) {
			t.Errorf("%+v, %v", c, err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != 0o640 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("%v, %v", names, err)
	}
}

func TestWhatIsNoRecordIsDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	var c content
	if err := atomicfile.ReadJSON(path, &c); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	for _, text := range []string{"", "{", `{"name": 3}`, `{"other": 1}`, strings.Repeat(" ", atomicfile.MaxJSON+1)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := atomicfile.ReadJSON(path, &c); !errors.Is(err, atomicfile.ErrDamaged) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

func TestFoldersAreMade(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "c")
	for range 2 {
		if err := atomicfile.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(path, "file"), nil, 0o600); err != nil {
		t.Error(err)
	}
}
