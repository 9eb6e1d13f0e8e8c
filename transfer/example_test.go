package transfer_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"tidemark/block"
	"tidemark/format/state"
	"tidemark/track"
	"tidemark/transfer"
	"tidemark/transfer/mirror"
	"tidemark/transfer/transaction"
	"tidemark/view"
)

// A run by hand: source, tracker, view and sink are put together as package pairs does
// it for paths.
func ExampleRun() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	report, err := copyOnce(filepath.Join(dir, "disk.img"), filepath.Join(dir, "copy.img"))
	fmt.Println(report.Mode, "read", report.Read, "bytes:", err)
	// Output: full read 1048576 bytes: <nil>
}

func copyOnce(from, to string) (transfer.Report, error) {
	if err := os.WriteFile(from, bytes.Repeat([]byte{1}, 1<<20), 0o600); err != nil {
		return transfer.Report{}, err
	}
	source, err := block.Open(from, block.Options{Direct: true})
	if err != nil {
		return transfer.Report{}, err
	}
	defer source.Close()
	if err := transaction.CreateImage(to, 0o600); err != nil {
		return transfer.Report{}, err
	}
	target, err := block.Open(to, block.Options{Write: true})
	if err != nil {
		return transfer.Report{}, err
	}
	defer target.Close()
	folder, err := transaction.OpenDir(to+".tidemark", true)
	if err != nil {
		return transfer.Report{}, err
	}
	defer folder.Close()
	store, err := mirror.Open(transaction.Disk{Device: target}, folder)
	if err != nil {
		return transfer.Report{}, err
	}
	defer store.Close()
	origin := state.Source{Path: from}
	if err := store.Init(source.Size(), 4096, origin, false); err != nil {
		return transfer.Report{}, err
	}
	ctx := context.Background()
	provider, _, err := view.Choose(ctx, "auto", view.Options{Sources: []*block.Device{source}})
	if err != nil {
		return transfer.Report{}, err
	}
	reports, err := transfer.Run(ctx, []*transfer.Pair{{
		Name: from, Target: to, Source: source, Tracker: track.NewScan(source.Size()), Owner: to,
		Sink: &mirror.Sink{Store: store, Name: to, Origin: origin},
	}}, transfer.Options{View: provider})
	return reports[0], err
}
