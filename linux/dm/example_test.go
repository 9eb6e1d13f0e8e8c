package dm_test

import (
	"fmt"
	"log"

	"tidemark/linux/dm"
)

// A linear device over the first MiB of a disk.
func Example() {
	ctl, err := dm.Open()
	if err != nil {
		log.Fatal(err)
	}
	defer ctl.Close()
	if _, err := ctl.Create("first", ""); err != nil {
		log.Fatal(err)
	}
	table := []dm.Target{{Start: 0, Len: 2048, Type: "linear", Params: "/dev/sda 0"}}
	if _, err := ctl.Load("first", table, dm.LoadOptions{}); err != nil {
		log.Fatal(err)
	}
	info, err := ctl.Resume("first")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Path())
}
