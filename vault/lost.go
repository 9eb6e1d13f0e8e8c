package vault

import (
	"context"
	"strings"

	format "tidemark/format/vault"
	"tidemark/vault/store"
)

// lostPoints returns the points that Repair knows to have lost something.
func (v *Vault) lostPoints(ctx context.Context) (map[format.PointName]bool, error) {
	lost := map[format.PointName]bool{}
	err := v.store.List(ctx, format.LostPrefix, func(i store.Info) error {
		if name, alien := format.ParsePointName(format.PointsPrefix + strings.TrimPrefix(i.Name, format.LostPrefix)); alien == nil {
			lost[name] = true
		}
		return nil
	})
	return lost, err
}

// staleMarks returns the marks of points that are not there any more.
func (v *Vault) staleMarks(ctx context.Context) (names []string, err error) {
	lost, err := v.lostPoints(ctx)
	if err != nil || len(lost) == 0 {
		return nil, err
	}
	there, err := v.pointNames(ctx, format.ID{})
	for _, name := range there {
		delete(lost, name)
	}
	for name := range lost {
		names = append(names, name.Lost())
	}
	return names, err
}

// markLost sets Lost of points that lost something.
func (v *Vault) markLost(ctx context.Context, all []Point) error {
	if len(all) == 0 {
		return nil
	}
	lost, err := v.lostPoints(ctx)
	for i := range all {
		all[i].Lost = lost[all[i].Name]
	}
	return err
}
