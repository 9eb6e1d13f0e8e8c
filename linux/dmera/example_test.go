package dmera_test

import (
	"context"
	"fmt"
	"log"

	"tidemark/linux/dm"
	"tidemark/linux/dmera"
)

// Bring an era device up, and list what was written to it since era 5. Nothing is written
// to it at that moment; see "Which era to keep as the mark".
func Example() {
	ctx := context.Background()
	ctl, err := dm.Open()
	if err != nil {
		log.Fatal(err)
	}
	defer ctl.Close()
	d, err := dmera.Activate(ctl, dmera.ActivateOptions{Name: "data", Data: "/dev/vg/data", Meta: "/dev/vg/data-era"})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close()
	snapshot, err := d.TakeSnapshot(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer snapshot.Close()
	changed, err := snapshot.Changed(ctx, 5)
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range changed.Extents() {
		fmt.Println(e.Off, e.Len)
	}
	fmt.Println("ask next time since era", snapshot.Era())
}
