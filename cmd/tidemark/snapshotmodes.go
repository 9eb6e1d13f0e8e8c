package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidemark/snapshot"
	"tidemark/transfer"
)

func newSnapshotToIncremental(g *globals) *cobra.Command {
	return command{
		use: "to-incremental NAME", short: "Drop the data of a snapshot, and go on to follow what changes",
		long: `Removes the images of NAME, its stores and their files, as "tidemark snapshot destroy" does, and goes on to follow what changes since its instant, as long as the tracking can vouch for that: "tidemark snapshot status" tells. A snapshot whose store was full can be taken on so, too.

NAME has to be taken with --track. "tidemark snapshot to-snapshot" takes the next one.`,
		example: `tidemark snapshot create --track --name nightly /dev/mapper/data
tidemark snapshot to-incremental nightly`,
		exits: []exitCode{exitRefused, exitBusy, exitMarkLost},
		args:  cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			s, err := snapshot.Find(g.snapshotOptions(), args[0])
			if err != nil {
				return err
			}
			return s.ToIncremental(cmd.Context())
		},
	}.build()
}

// nextSnapshot is what "snapshot to-snapshot" prints of a volume.
type nextSnapshot struct {
	Origin string `json:"origin"`
	Image  string `json:"image"`
	List   string `json:"list"`
}

func newSnapshotToSnapshot(g *globals) *cobra.Command {
	var next snapshot.Next
	var stores, lists []string
	var size, reserve byteSize
	var asJSON bool
	cmd := command{
		use: "to-snapshot NAME", short: "Take the next snapshot of an incremental one, and list what changed",
		long: `Takes a new snapshot of the devices of NAME, which is incremental, at a new instant, and prints the path of each image, and of the list of what changed from the last instant to this one. The list is a COW file as dattobd leaves it: "tidemark datto merge IMAGE LIST COPY" brings a copy of the last image to this one. It is --list FILE, in place of what was there if that is such a list, or a file beside NAME's record, which stays until the next one.

Where what changed cannot be told, because the tracking was ended or has a gap (a reboot, a merge into the device, a table that was replaced), that is said, and nothing is done: destroy NAME, take a new one, and copy all of it.

Stores are as they were, or as --store and --size say. With several devices --store and --list are DEVICE=PATH, for each that is to have another place, DEVICE as "tidemark snapshot status" names it.`,
		example: `tidemark snapshot to-snapshot nightly --list /backup/data.changes
tidemark datto merge /dev/mapper/data+nightly /backup/data.changes /backup/data.img`,
		exits: []exitCode{exitRefused, exitBusy, exitNoConverge, exitMarkLost},
		args:  cobra.ExactArgs(1),
		run: func(cmd *cobra.Command, args []string) error {
			s, err := snapshot.Find(g.snapshotOptions(), args[0])
			if err != nil {
				return err
			}
			var places []string
			if places, err = perVolume(s, "--store", stores); err == nil {
				next.Lists, err = perVolume(s, "--list", lists)
			}
			if err != nil {
				return err
			}
			for _, path := range places {
				d := snapshot.Device{Store: path, Size: int64(size)}
				if d.Ranges, err = storeRanges(path); err != nil {
					return usageError{fmt.Errorf("--store %q: %w", path, err)}
				}
				if s.Persistent {
					if d.Store, err = lastingStore(path); err != nil {
						return err
					}
				}
				next.Stores = append(next.Stores, d)
			}
			next.Reserve = int64(reserve)
			if err := s.ToSnapshot(cmd.Context(), next); err != nil {
				return err
			}
			return printNext(cmd, s, next.Lists, asJSON)
		},
	}.build()
	cmd.Flags().StringArrayVar(&stores, "store", nil, "`path` of the store, or DEVICE:START+LENGTH,...; DEVICE=PATH with several devices")
	cmd.Flags().StringArrayVar(&lists, "list", nil, "`path` of the list of what changed; DEVICE=PATH with several devices")
	addSize(cmd, &size, "size", "size of each store; by default as before")
	addSize(cmd, &reserve, "reserve", "what stores leave of the room on their filesystems; by default 64M, or a twentieth of a small one")
	cmd.Flags().DurationVar(&next.MaxFreeze, "max-freeze", transfer.DefaultMaxFreeze, "how long writers may wait; then nothing is made")
	addJSON(cmd, &asJSON, "one array")
	return cmd
}

// perVolume sorts paths to the volumes of a snapshot; "" is none.
func perVolume(s *snapshot.Snapshot, flag string, texts []string) ([]string, error) {
	paths := make([]string, len(s.Volumes))
	for _, text := range texts {
		device, path, ok := strings.Cut(text, "=")
		if !ok && len(paths) == 1 {
			device, path = s.Volumes[0].Name, text
		}
		found := false
		for i, v := range s.Volumes {
			if strings.TrimPrefix(device, "/dev/mapper/") == v.Name && path != "" && paths[i] == "" {
				paths[i], found = path, true
			}
		}
		if !found {
			return nil, usagef("%s %q: want PATH with one device, DEVICE=PATH with several, once for each", flag, text)
		}
	}
	return paths, nil
}

func printNext(cmd *cobra.Command, s *snapshot.Snapshot, lists []string, asJSON bool) error {
	var all []nextSnapshot
	for i, v := range s.Volumes {
		all = append(all, nextSnapshot{v.Name, s.Image(v), lists[i]})
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), all)
	}
	for _, n := range all {
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\t%s\n", n.Image, n.List); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(cmd.ErrOrStderr(), "snapshot %s: writers waited for %v\n", s.Name, s.Frozen.Round(time.Millisecond))
	return err
}
