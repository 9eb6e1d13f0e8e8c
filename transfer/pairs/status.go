package pairs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"tidemark/format/sidecar"
)

// Status returns what is known of the mirror at path, also while a run is using
// it. It changes nothing. The error wraps ErrNoMirror, sidecar.ErrDamaged,
// ErrNotOurs or ErrNewer.
func Status(path, stateDir string) (sidecar.State, error) {
	if stateDir == "" {
		stateDir = DefaultStateDir
	}
	t, err := findTarget(path, stateDir)
	if err != nil {
		return sidecar.State{}, err
	}
	f, err := os.Open(filepath.Join(t.folder, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return sidecar.State{}, fmt.Errorf("%s: %w: %s is missing", path, ErrNoMirror, filepath.Join(t.folder, stateFile))
	}
	if err != nil {
		return sidecar.State{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, sidecar.MaxState+1))
	if err != nil {
		return sidecar.State{}, err
	}
	state, err := sidecar.DecodeState(b)
	if err != nil {
		return sidecar.State{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return state, nil
}
