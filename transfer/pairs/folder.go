package pairs

// Place is where a target and what is kept beside it lie.
type Place struct {
	Path   string // of the target, absolute and without symbolic links
	Folder string
	Exists bool // the target
	Device bool
}

// Find returns where the target at path, which need not exist, and its folder lie.
// It makes nothing. stateDir is DefaultStateDir when empty.
func Find(path, stateDir string) (Place, error) {
	if stateDir == "" {
		stateDir = DefaultStateDir
	}
	t, err := findTarget(path, stateDir)
	if err != nil {
		return Place{}, err
	}
	return Place{Path: t.path, Folder: t.folder, Exists: t.exists, Device: t.device}, nil
}
