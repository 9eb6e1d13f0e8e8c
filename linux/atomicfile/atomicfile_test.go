package atomicfile_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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

// What a killed writer leaves is a file that nobody has locked.
func TestTheNextWriterRemovesWhatAKilledOneLeft(t *testing.T) {
	dir := t.TempDir()
	left, theirs := filepath.Join(dir, ".tmp-tidemark-KILLED"), filepath.Join(dir, ".tmp-theirs")
	leave := func() {
		for _, path := range []string{left, theirs} {
			if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	names := func() (all []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, e.Name())
		}
		return all
	}
	leave()
	// The file of a writer that lives stays, whoever writes or sweeps meanwhile.
	err := atomicfile.Write(filepath.Join(dir, "outer"), atomicfile.Options{}, func(*os.File) error {
		leave()
		return errors.Join(atomicfile.WriteJSON(filepath.Join(dir, "inner"), atomicfile.Options{}, 1), atomicfile.Sweep(dir))
	})
	if err != nil {
		t.Error(err)
	}
	if got := names(); !slices.Equal(got, []string{".tmp-theirs", "inner", "outer"}) {
		t.Errorf("after a write: %q", got)
	}
	leave()
	if err := atomicfile.Sweep(dir); err != nil {
		t.Error(err)
	}
	if got := names(); !slices.Equal(got, []string{".tmp-theirs", "inner", "outer"}) {
		t.Errorf("after a sweep: %q", got)
	}
	if err := atomicfile.Sweep(filepath.Join(dir, "missing")); err != nil {
		t.Error(err)
	}
}

func TestWritersDoNotSweepEachOther(t *testing.T) {
	dir := t.TempDir()
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for n := range 200 {
				if err := atomicfile.WriteJSON(filepath.Join(dir, fmt.Sprint(i)), atomicfile.Options{}, n); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 4 {
		t.Errorf("%v, %v", entries, err)
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
