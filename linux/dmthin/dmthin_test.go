package dmthin

import (
	"errors"
	"testing"

	"tidemark/linux/dm"
)

func TestStatusLinesOfTheKernelAreUnderstood(t *testing.T) {
	for line, want := range map[string]Status{
		"0 12/1024 5/4096 - rw discard_passdown queue_if_no_space - 1024":                             {Mode: "rw", UsedMetadata: 12, TotalMetadata: 1024, UsedData: 5, TotalData: 4096},
		"7 12/1024 5/4096 220 rw no_discard_passdown error_if_no_space - 1024":                        {Transaction: 7, Held: 220, Mode: "rw", UsedMetadata: 12, TotalMetadata: 1024, UsedData: 5, TotalData: 4096},
		"7 12/1024 4096/4096 - out_of_data_space discard_passdown queue_if_no_space needs_check 1024": {Transaction: 7, Mode: "out_of_data_space", NeedsCheck: true, UsedMetadata: 12, TotalMetadata: 1024, UsedData: 4096, TotalData: 4096},
		"7 12/1024 5/4096 - ro discard_passdown queue_if_no_space needs_check 1024":                   {Transaction: 7, Mode: "ro", NeedsCheck: true, UsedMetadata: 12, TotalMetadata: 1024, UsedData: 5, TotalData: 4096},
	} {
		if got, err := parseStatus(dm.Info{}, line); err != nil || got != want {
			t.Errorf("%s: %+v, %v", line, got, err)
		}
	}
	if _, err := parseStatus(dm.Info{}, "Fail"); !errors.Is(err, ErrFailed) {
		t.Error(err)
	}
	for _, line := range []string{"", "x 12/1024 5/4096 - rw", "7 12/1024 5/4096 y rw", "7 12/1024"} {
		if _, err := parseStatus(dm.Info{}, line); err == nil {
			t.Errorf("%q passes", line)
		}
	}
}

func TestTablesOfPoolsAreUnderstood(t *testing.T) {
	p, err := parsePool(dm.Info{}, dm.Target{Type: "thin-pool", Params: "253:0 253:1 128 0 1 skip_block_zeroing "})
	if err != nil || p.BlockSize != 64<<10 || p.Metadata.Minor != 0 || p.Data.Minor != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	for _, params := range []string{"", "253:0 253:1 0 0", "/dev/x 253:1 128 0", "253:0 253:1 128"} {
		if _, err := parsePool(dm.Info{}, dm.Target{Type: "thin-pool", Params: params}); err == nil {
			t.Errorf("%q passes", params)
		}
	}
}
