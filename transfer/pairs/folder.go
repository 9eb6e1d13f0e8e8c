package pairs

// Folder returns the path of the folder that belongs to a target at path, which
// need not exist, and whether the target is a device. It makes nothing. stateDir is
// DefaultStateDir when empty.
func Folder(path, stateDir string) (folder string, device bool, err error) {
	if stateDir == "" {
		stateDir = DefaultStateDir
	}
	t, err := findTarget(path, stateDir)
	if err != nil {
		return "", false, err
	}
	return t.folder, t.device, nil
}
