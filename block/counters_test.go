package block

import "testing"

func TestCountersAreTheFieldsThatTheKernelDocuments(t *testing.T) {
	for _, tt := range []struct {
		text string
		want Counters
		ok   bool
	}{
		{"1 2 3 4 5 6 7 8 9 10 11\n", Counters{Read: 3, Written: 7}, true}, // before 4.18
		{"1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n", Counters{Read: 3, Written: 7, Discarded: 14}, true},
		{"1 2 3\n", Counters{}, false},
		{"1 2 3 4 5 6 -7 8 9 10 11\n", Counters{}, false},
	} {
		got, err := parseCounters(tt.text)
		if (err == nil) != tt.ok || got != tt.want {
			t.Errorf("%q: %+v, %v", tt.text, got, err)
		}
	}
}
