package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// errMetadataInUse says that a kernel or a program is using metadata that must
// stand still while it is read.
var errMetadataInUse = errors.New("the metadata is in use")

// errOutput says that an output must not be written to.
var errOutput = errors.New("refused")

func newEra(g *globals) *cobra.Command {
	return command{
		use: "era", short: "Make and use dm-era devices, and check and rebuild their metadata",
		long: `dm-era is a device-mapper target that remembers in which era each block of a device was last written. An era ends with each checkpoint, metadata snapshot and activation. "create", "open", "close", "status", "resize" and "changes" work on era devices, without dmsetup; the others on their metadata: on the metadata device, or on an image of it. They read the format themselves; thin-provisioning-tools need not be there.

While an era device is active only its metadata snapshot stands still: "dmsetup message NAME 0 take_metadata_snap" takes it, drop_metadata_snap drops it, and one left behind holds space for ever. Without --metadata-snapshot, metadata in use is refused.

"copy" and "apply" carry what a list names to a copy of the device, as era_copy and era_apply do; called through a symlink of that name, tidemark takes their arguments.

Called through a symlink named era_dump, era_invalidate, era_check, era_restore or era_repair, tidemark takes the options and prints the output of that program of thin-provisioning-tools 0.9, with the options that 1.x added, and ends with 0 or 1 as it does.`,
		example: `tidemark era check /dev/vg/era-meta
tidemark era invalidate --written-since 12 --metadata-snapshot /dev/vg/era-meta`,
		exits: []exitCode{exitRefused, exitBusy, exitDamaged},
	}.build(
		newEraCreate(g), newEraOpen(g), newEraClose(g), newEraStatus(g), newEraResize(g), newEraChanges(g),
		newEraDump(), newEraInvalidate(), newEraCheck(), newEraRestore(), newEraRepair(), newEraPlan(),
		newEraCopy(g), newEraApply(g),
	)
}

// eraNumber is a flag for an era, decimal as in era_invalidate 0.9: a leading
// zero does not make it octal.
type eraNumber struct {
	value uint32
	given bool
}

func (n *eraNumber) Type() string { return "era" }

func (n *eraNumber) String() string {
	if !n.given {
		return ""
	}
	return strconv.FormatUint(uint64(n.value), 10)
}

// Set implements pflag.Value.
func (n *eraNumber) Set(s string) error {
	v, err := strconv.ParseUint(strings.TrimPrefix(s, "+"), 10, 32)
	if err != nil {
		return fmt.Errorf("must be a number from 0 to %d", uint32(1<<32-1))
	}
	n.value, n.given = uint32(v), true
	return nil
}
