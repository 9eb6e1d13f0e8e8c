package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
)

// toolJob measures one command of tidemark and of the tools of both releases, on metadata of that
// format. Where it is to be the same, what they print is compared.
func (l *lab) toolJob(format, image, newer string, job []string, same bool) error {
	name := format + "_" + job[0]
	tools := []struct {
		name               string
		args               []string
		user, wall, memory sample
	}{
		{name: "tidemark", args: append([]string{l.tidemark, format}, job...)},
		{name: name + " 0.9.0", args: append([]string{"/usr/sbin/" + name}, job[1:]...)},
		{name: name + " 1.1.0", args: append([]string{newer, name}, job[1:]...)},
	}
	for range eraRounds {
		for i := range tools {
			t := &tools[i]
			out := l.path(fmt.Sprintf("out%d", i))
			u, err := timed(l.command("bash", append([]string{"-c", `out=$1; shift; exec "$@" >"$out"`, "bash", out}, append(t.args, image)...)...))
			if err != nil {
				return err
			}
			t.user, t.wall = append(t.user, u.user), append(t.wall, u.wall)
			t.memory = append(t.memory, float64(u.memory)/(1<<20))
		}
		for _, other := range []string{"out1", "out2"} {
			if !same {
				break
			}
			// White space, and the flags of a thin pool, are where the versions differ. It is not done here, because
			// what this program takes counts as the memory of those it starts.
			equal := fmt.Sprintf(`cmp <(sed 's/ flags="0"//' %s | tr -d ' \t\n') <(sed 's/ flags="0"//' %s | tr -d ' \t\n')`, l.path("out0"), l.path(other))
			if _, err := l.do("bash", "-c", equal); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	for i, t := range tools {
		ratio := ""
		if i > 0 {
			ratio = "**" + t.user.over(tools[0].user).spread("%.2f") + "**"
		}
		fmt.Printf("| %s: %s | %s | %s | %s | %.0f |\n", strings.Join(job, " "), t.name, t.user.spread("%.3f"), ratio, t.wall.spread("%.3f"), t.memory.median())
	}
	return nil
}

// thinTools measures reading the metadata of a thin pool beside thin-provisioning-tools.
func thinTools(l *lab) error {
	fmt.Printf("## dm-thin tools\n\nMetadata of two devices with %d blocks each, in runs of a few, 2 %% of them different, made by thin_restore, in memory; %d rounds in turns.\n\n", thinBlocks, eraRounds)
	newer, err := l.do("scripts/bench-tools")
	if err != nil {
		return err
	}
	xml, image := l.path("thin.xml"), l.path("thin.img")
	if err := writeThin(xml); err != nil {
		return err
	}
	if _, err := l.do("truncate", "-s", "512M", image); err != nil {
		return err
	}
	if _, err := l.do("thin_restore", "-i", xml, "-o", image); err != nil {
		return err
	}
	fmt.Print("| | user time, s | it / tidemark | wall time, s | peak memory, MiB |\n|---|---|---|---|---|\n")
	for _, job := range [][]string{{"delta", "--snap1", "0", "--snap2", "1"}, {"dump"}, {"check"}, {"ls", "-o", "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS"}} {
		if err := l.toolJob("thin", image, newer, job, job[0] != "check"); err != nil {
			return err
		}
	}
	fmt.Println()
	return nil
}

const thinBlocks = 6_000_000

// writeThin writes what thin_restore is to make. The seed is fixed: figures must be comparable.
func writeThin(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	fmt.Fprintln(w, `<superblock uuid="" time="9" transaction="7" data_block_size="128" nr_data_blocks="20000000">`)
	for device := range 2 {
		fmt.Fprintf(w, "<device dev_id=\"%d\" mapped_blocks=\"%d\" transaction=\"0\" creation_time=\"0\" snap_time=\"9\">\n", device, thinBlocks)
		rng := rand.New(rand.NewPCG(1, 2))
		other := rand.New(rand.NewPCG(3, 4))
		for at, left := 0, thinBlocks; left > 0; {
			at += []int{0, 0, 1, 5}[rng.IntN(4)]
			run, data := min([]int{1, 1, 1, 2, 3, 8}[rng.IntN(6)], left), rng.IntN(19_000_000)
			if device == 1 && other.IntN(50) == 0 {
				data = other.IntN(19_000_000)
			}
			if run == 1 {
				fmt.Fprintf(w, "<single_mapping origin_block=\"%d\" data_block=\"%d\" time=\"0\"/>\n", at, data)
			} else {
				fmt.Fprintf(w, "<range_mapping origin_begin=\"%d\" data_begin=\"%d\" length=\"%d\" time=\"0\"/>\n", at, data, run)
			}
			at, left = at+run, left-run
		}
		fmt.Fprintln(w, "</device>")
	}
	fmt.Fprintln(w, "</superblock>")
	return w.Flush()
}
