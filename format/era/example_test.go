package era_test

import (
	"fmt"
	"log"
	"os"
	"strings"

	"tidemark/format/era"
)

// image is a metadata device in memory.
type image []byte

func (m image) ReadAt(p []byte, off int64) (int, error)  { return copy(p, m[off:]), nil }
func (m image) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

const dump = `<superblock uuid="" block_size="128" nr_blocks="1000" current_era="3">
  <writeset era="2" nr_bits="1000"><marked block_begin="40" len="3"/></writeset>
  <era_array><era block="7" era="1"/></era_array>
</superblock>`

// Restore metadata, then ask what was written from era 2 on.
func ExampleView_Changed() {
	meta := make(image, 64*era.BlockSize)
	if err := era.Restore(strings.NewReader(dump), meta, int64(len(meta))); err != nil {
		log.Fatal(err)
	}
	m, err := era.Open(meta, int64(len(meta)))
	if err != nil {
		log.Fatal(err)
	}
	list := era.NewRangesXML(os.Stdout)
	if err := m.Live().Changed(era.Query{Since: 2}, list.Range); err != nil {
		log.Fatal(err)
	}
	if err := list.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// <blocks>
	//   <range begin="40" end = "43"/>
	// </blocks>
}

// How large must the metadata of 64 GiB in blocks of 2 MiB be?
func ExampleNewPlan() {
	p, err := era.NewPlan(64<<30, 4096, era.PlanOptions{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("create:", p.Create>>10, "KiB, ten snapshots:", p.SnapshotsLeast>>10, "to", p.SnapshotsMost>>10, "KiB")
	fmt.Println("recommended:", p.Recommended>>10, "KiB")
	// Output:
	// create: 176 KiB, ten snapshots: 204 to 300 KiB
	// recommended: 1024 KiB
}
