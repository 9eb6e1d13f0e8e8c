package dmsnap

import (
	"testing"

	"tidemark/linux/dm"
	"tidemark/linux/sysfs"
)

// Tables and status lines as Linux 6.1 and 6.12 print them.
func TestTablesAreUnderstoodOrRefused(t *testing.T) {
	for params, want := range map[string]*Snapshot{
		"253:3 253:4 P 8":                           {Origin: sysfs.Dev{Major: 253, Minor: 3}, Store: sysfs.Dev{Major: 253, Minor: 4}, Persistent: true, ChunkSize: 4096},
		"7:0 7:1 PO 128 ":                           {Origin: sysfs.Dev{Major: 7}, Store: sysfs.Dev{Major: 7, Minor: 1}, Persistent: true, ChunkSize: 64 << 10},
		"7:0 7:1 N 16 1 discard_zeroes_cow":         {Origin: sysfs.Dev{Major: 7}, Store: sysfs.Dev{Major: 7, Minor: 1}, ChunkSize: 8192, Features: "discard_zeroes_cow"},
		"253:3 253:4 X 8":                           nil,
		"253:3 253:4 P":                             nil,
		"/dev/a 253:4 P 8":                          nil,
		"253:3 253:4 P eight":                       nil,
		"253:3 253:4 P 99999999999999999999999 1 a": nil,
	} {
		s, err := parseSnapshot(dm.Info{}, dm.Target{Type: "snapshot", Params: params})
		if want == nil && err == nil || want != nil && (err != nil || s != *want) {
			t.Errorf("%q: %+v, %v", params, s, err)
		}
	}
}

func TestStatusIsUnderstoodOrRefused(t *testing.T) {
	for params, want := range map[string]*Usage{
		"8080/20480 40": {State: Valid, Used: 8080 * 512, Total: 20480 * 512, MetadataPortion: 40 * 512},
		"Invalid":       {State: Invalid},
		"Overflow ":     {State: Overflow},
		"Merge failed":  {State: MergeFailed},
		"Unknown":       {State: Unknown},
		"":              nil,
		"8080/20480":    nil,
		"-1/20480 40":   nil,
		"1/2 3 4":       nil,
		"valid":         nil,
	} {
		u, err := parseUsage(dm.Info{}, dm.Target{Params: params})
		if want == nil && err == nil || want != nil && (err != nil || u != *want) {
			t.Errorf("%q: %+v, %v", params, u, err)
		}
	}
}
