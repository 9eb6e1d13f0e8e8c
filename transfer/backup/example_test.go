package backup_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"tidemark/block"
	format "tidemark/format/vault"
	"tidemark/track"
	"tidemark/transfer"
	"tidemark/transfer/backup"
	"tidemark/vault"
	"tidemark/vault/store"
	"tidemark/view"
)

// Two points of an image file, and the first of them read again.
func Example() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	ctx, image := context.Background(), filepath.Join(dir, "disk.img")
	v, err := newVault(ctx, filepath.Join(dir, "vault"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer v.Close()
	for _, content := range []string{"monday", "friday"} {
		if err := os.WriteFile(image, bytes.Repeat([]byte(content), 200_000), 0o600); err != nil {
			fmt.Println(err)
			return
		}
		report, err := backUp(ctx, v, image)
		fmt.Println(report.Mode, report.Outcome, err)
	}
	points, err := v.Points(ctx, format.ID{})
	if err != nil {
		fmt.Println(err)
		return
	}
	b := make([]byte, 6)
	_, err = v.Reader(ctx, points[0]).ReadAt(b, 600_000)
	fmt.Println(len(points), "points; the first says", string(b), err)
	// Output:
	// full ok <nil>
	// scan ok <nil>
	// 2 points; the first says monday <nil>
}

func newVault(ctx context.Context, path string) (*vault.Vault, error) {
	s, err := store.Open(ctx, path, store.Options{})
	if err != nil {
		return nil, err
	}
	if err := vault.Init(ctx, s); err != nil { // without a key: not encrypted
		return nil, err
	}
	return vault.Open(ctx, s, vault.Options{})
}

func backUp(ctx context.Context, v *vault.Vault, image string) (transfer.Report, error) {
	source, err := block.Open(image, block.Options{})
	if err != nil {
		return transfer.Report{}, err
	}
	defer source.Close()
	disk, err := v.AddDisk(ctx, format.Disk{Name: "disk"})
	if err != nil {
		return transfer.Report{}, err
	}
	sink, err := backup.Open(ctx, v, disk, backup.Options{Tags: []string{"example"}})
	if err != nil {
		return transfer.Report{}, err
	}
	provider, _, err := view.Choose(ctx, "auto", view.Options{Sources: []*block.Device{source}})
	if err != nil {
		return transfer.Report{}, err
	}
	reports, err := transfer.Run(ctx, []*transfer.Pair{{
		Name: image, Target: disk.Name, Source: source, Tracker: track.NewScan(source.Size()), Owner: disk.ID.String(), Sink: sink,
	}}, transfer.Options{View: provider})
	if err != nil {
		return transfer.Report{}, err
	}
	return reports[0], nil
}
