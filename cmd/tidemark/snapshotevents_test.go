package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"tidemark/snapshot"
)

// Before a store is full it is told how long it will take, from how fast it was filled between two looks.
func TestTheTimeUntilAStoreIsFull(t *testing.T) {
	var told []snapshotEvent
	w := &watcher{low: 80, before: map[string]sample{}, tell: func(e snapshotEvent) error {
		told = append(told, e)
		return nil
	}}
	s := &snapshot.Snapshot{Name: "s"}
	look := func(used int64) {
		t.Helper()
		v := snapshot.VolumeStatus{Volume: &snapshot.Volume{Name: "v"}, Used: used, Total: 100 << 20}
		if err := w.look(t.Context(), s, v); err != nil {
			t.Fatal(err)
		}
	}
	look(10 << 20)
	before := w.before["v"]
	before.at = before.at.Add(-7 * time.Minute)
	w.before["v"] = before
	look(80 << 20) // 70 MiB in seven minutes and a moment
	look(81 << 20) // it was told
	if len(told) != 1 || told[0].Event != "low-space" || told[0].LeftS < 120 || told[0].LeftS > 125 {
		t.Fatalf("%+v", told)
	}
	var text bytes.Buffer
	told[0].LeftS = 120
	if err := told[0].print(&text, false); err != nil || !strings.Contains(text.String(), "s v: low-space, 80 MiB of 100 MiB used, full in 2m0s at this rate") {
		t.Errorf("%q, %v", text.String(), err)
	}
}
