package main

import (
	"slices"
	"testing"

	"tidemark/snapshot"
)

// What is no list of parts of devices is a path, whatever colons it has.
func TestStoreRanges(t *testing.T) {
	for _, c := range []struct {
		text string
		want []snapshot.Range
		ok   bool
	}{
		{"/srv/a:b/file", nil, true},
		{"/dev/disk/by-path/pci-0000:00:1f.2-ata-1", nil, true},
		{"lvm", nil, true},
		{"/dev/sdd:0+8s", []snapshot.Range{{Path: "/dev/sdd", Len: 4096}}, true},
		{"/dev/disk/by-path/pci-0000:00:1f.2-ata-1:1M+1G,/dev/sdd:20G+4G", []snapshot.Range{
			{Path: "/dev/disk/by-path/pci-0000:00:1f.2-ata-1", Off: 1 << 20, Len: 1 << 30}, {Path: "/dev/sdd", Off: 20 << 30, Len: 4 << 30},
		}, true},
		{"/dev/sdd:1M+0", nil, false},
		{"/dev/sdd:1M+1X", nil, false},
		{"/dev/sdd:1M+1G,/dev/sde", nil, false},
	} {
		got, err := storeRanges(c.text)
		if !slices.Equal(got, c.want) || (err == nil) != c.ok {
			t.Errorf("%s: %v, %v", c.text, got, err)
		}
	}
}
