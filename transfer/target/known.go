package target

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"tidemark/format/state"
	"tidemark/transfer/mirror"
)

// Known is what is known of a mirror.
type Known struct {
	state.State
	// Pending says that an update was committed after State, and has not, or not
	// wholly, reached the target; a run is about to finish it, or the next one will.
	Pending bool
}

// Status returns what is known of the mirror at path, also while a run is using
// it. It changes nothing. The error wraps ErrNoMirror, state.ErrDamaged,
// ErrNotOurs or ErrNewer.
func Status(path, stateDir string) (Known, error) {
	t, err := Find(path, stateDir)
	if err != nil {
		return Known{}, err
	}
	return KnownIn(t.Folder, path)
}

// KnownIn is what a folder tells of the mirror at path.
func KnownIn(folder, path string) (k Known, err error) {
	// The state is read first: a run that ends meanwhile makes nothing pending.
	if k.State, err = ReadState(folder); err == nil {
		k.Pending, err = mirror.PendingAfter(folder, k.State)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return k, err
}

// ReadState returns the state of the mirror with that folder. The error is as that of Status.
func ReadState(folder string) (state.State, error) {
	path := filepath.Join(folder, mirror.StateFile)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return state.State{}, fmt.Errorf("%w: %s is missing", ErrNoMirror, path)
	}
	if err != nil {
		return state.State{}, err
	}
	defer f.Close()
	st, err := state.Read(f)
	if err != nil {
		return state.State{}, fmt.Errorf("%s: %w", path, err)
	}
	return st, nil
}
