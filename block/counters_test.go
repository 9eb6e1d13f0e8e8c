package block

import "testing"

func TestCountersOfEveryKernelAreParsed(t *testing.T) {
	for text, want := range map[string]Counters{
		"1 2 3 4 5 6 7 8 9 10 11":                       {3, 7, 0},
		"1 2 3 4 5 6 7 8 9 10 11 12 13 14 15":           {3, 7, 14},
		"  1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n": {3, 7, 14},
	} {
		if got, err := parseCounters(text); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
}

func FuzzParseCounters(f *testing.F) {
	f.Add("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n")
	f.Add("1 2 3 4 5 6 7 8 9 10 11")
	f.Add("1 2 3")
	f.Add("1 2 3 4 5 6 -7 8 9 10 11")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseCounters(text)
		if err != nil && c != (Counters{}) {
			t.Errorf("%v along with %v", c, err)
		}
	})
}
