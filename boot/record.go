package boot

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
)

// recordPath is the record of the files that are ours.
const recordPath = "/var/lib/tidemark/boot.json"

// record tells our files from other files and from changed ones. For each path it has the
// sums of the contents that are ours: while files are being replaced, the old and the new.
type record struct {
	Version int                 `json:"version"`
	Program string              `json:"program"`
	Sums    map[string][]string `json:"files"`
}

const recordVersion = 1

// sum names the content of a file.
func (f File) sum() string {
	if f.Link != "" {
		return "link:" + f.Link
	}
	s := sha256.Sum256(f.Data)
	return "sha256:" + hex.EncodeToString(s[:])
}

// readRecord reads the record; there is none before the first installation.
func readRecord(root *os.Root) (record, error) {
	r := record{Version: recordVersion, Sums: map[string][]string{}}
	data, err := root.ReadFile(inside(recordPath))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err == nil && r.Version != recordVersion {
		err = fmt.Errorf("version %d, this program knows %d", r.Version, recordVersion)
	}
	if err != nil {
		return r, fmt.Errorf("boot: %s: %w", recordPath, err)
	}
	if r.Sums == nil {
		r.Sums = map[string][]string{}
	}
	return r, nil
}

// file is the record as a file.
func (r record) file() (File, error) {
	data, err := json.MarshalIndent(r, "", "  ")
	return File{Path: recordPath, Mode: 0o644, Data: append(data, '\n')}, err
}

// with is the record while files are replaced: each may hold the old or the new.
func (r record) with(next record) record {
	both := record{Version: recordVersion, Program: next.Program, Sums: maps.Clone(r.Sums)}
	for path, sums := range next.Sums {
		both.Sums[path] = append(slices.Clone(r.Sums[path]), sums...)
	}
	return both
}

// FileState compares a file with the content that the table asks for.
type FileState string

// The states of a file.
const (
	Same     FileState = "same"     // as Apply would write it now
	Outdated FileState = "outdated" // as Apply wrote it for another table, or an older version
	Missing  FileState = "missing"
	Changed  FileState = "changed" // by hand
	Foreign  FileState = "foreign" // in the way, and not ours
	// OtherBuild is the state of a program that goes into an initramfs (see EarlyProgram).
	OtherBuild FileState = "of another build"
)

// state compares the file at want.Path with want.
func (r record) state(root *os.Root, want File) (FileState, error) {
	have, err := readFile(root, want.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Missing, nil
	case err != nil:
		return "", fmt.Errorf("boot: %w", err)
	}
	known, ours := r.Sums[want.Path]
	switch {
	case have.sum() == want.sum() && (have.Link != "" || have.Mode == want.Mode):
		return Same, nil
	case have.sum() == want.sum(), slices.Contains(known, have.sum()):
		return Outdated, nil
	case ours:
		return Changed, nil
	}
	return Foreign, nil
}

// readFile reads a file or symbolic link of the system.
func readFile(root *os.Root, path string) (File, error) {
	info, err := root.Lstat(inside(path))
	if err != nil {
		return File{}, err
	}
	f := File{Path: path, Mode: info.Mode().Perm()}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		f.Link, err = root.Readlink(inside(path))
	case info.Mode().IsRegular():
		f.Data, err = root.ReadFile(inside(path))
	default:
		err = fmt.Errorf("%s: %w: neither a file nor a link", path, ErrNotOurs)
	}
	return f, err
}
