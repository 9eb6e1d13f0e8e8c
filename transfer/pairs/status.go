package pairs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"tidemark/format/sidecar"
	"tidemark/transfer/mirror"
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
	state, err := readState(t.folder)
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return state, err
}

func readState(folder string) (sidecar.State, error) {
	path := filepath.Join(folder, mirror.StateFile)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return sidecar.State{}, fmt.Errorf("%w: %s is missing", ErrNoMirror, path)
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
		return sidecar.State{}, fmt.Errorf("%s: %w", path, err)
	}
	return state, nil
}
