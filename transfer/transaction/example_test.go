package transaction_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"tidemark/block"
	"tidemark/extent"
	"tidemark/transfer/transaction"
)

// An image is changed in two places, or not at all.
func Example() {
	at, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(at)
	path := filepath.Join(at, "disk.img")
	if err := os.WriteFile(path, []byte("old old old old"), 0o600); err != nil {
		log.Fatal(err)
	}
	if err := change(context.Background(), path); err != nil {
		log.Fatal(err)
	}
	content, err := os.ReadFile(path)
	fmt.Printf("%q, %v", content, err)
	// Output: "new old \x00\x00\x00 old", <nil>
}

func change(ctx context.Context, path string) (err error) {
	device, err := block.Open(path, block.Options{Write: true, Exclusive: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	folder, err := transaction.OpenDir(path+".tidemark", true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, folder.Close()) }()
	target := transaction.Disk{Device: device}
	// A run before this one may have been cut off.
	if _, err := transaction.Recover(target, folder, transaction.FinishUntouched, transaction.Steps{}); err != nil {
		return err
	}
	txn, err := transaction.Begin(ctx, target, folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, txn.Abort()) }() // does nothing after Finish
	if err := txn.Data(0, []byte("new")); err != nil {
		return err
	}
	if err := txn.Zero(extent.Extent{Off: 8, Len: 3}); err != nil {
		return err
	}
	if err := txn.Seal(ctx, device.Size(), nil); err != nil {
		return err
	}
	if err := txn.Publish(); err != nil {
		return err
	}
	return txn.Finish(ctx, transaction.Steps{})
}
