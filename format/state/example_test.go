package state_test

import (
	"fmt"
	"log"

	"tidemark/format/state"
)

// What is known of a mirror is written and read back.
func Example() {
	s := state.State{Size: 1 << 20, BlockSize: 4096, Complete: true, Mark: "bpf:0123456789abcdef:7"}
	s.AddRun(state.Run{Tracker: "bpf", View: "freeze", Outcome: "ok"})
	b, err := s.Encode()
	if err != nil {
		log.Fatal(err)
	}
	again, err := state.Decode(b)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(again.Size, again.Mark, again.Runs[0].Outcome)
	// Output: 1048576 bpf:0123456789abcdef:7 ok
}
