package pairs_test

import (
	"testing"

	"tidemark/transfer/pairs"
)

func TestAPairIsSplitBehindItsTag(t *testing.T) {
	for text, want := range map[string]pairs.Pair{
		"/dev/vdb1=/backup/b.img":        {Source: "/dev/vdb1", Target: "/backup/b.img"},
		"LABEL=srv=/backup/b.img":        {Source: "LABEL=srv", Target: "/backup/b.img"},
		"UUID=12-AB=LABEL=copy":          {Source: "UUID=12-AB", Target: "LABEL=copy"},
		"/dev/vdb1=PARTUUID=1-2":         {Source: "/dev/vdb1", Target: "PARTUUID=1-2"},
		"/dev/vdb1=/backup/a=b.img":      {Source: "/dev/vdb1", Target: "/backup/a=b.img"},
		"LABEL=/backup/b.img":            {},
		"LABEL==/backup/b.img":           {},
		"/dev/vdb1=":                     {},
		"=x":                             {},
		"/dev/disk/by-label/x=/backup/b": {Source: "/dev/disk/by-label/x", Target: "/backup/b"},
	} {
		if got, err := pairs.ParsePair(text); got != want || (err != nil) != (want == pairs.Pair{}) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}
