package bpf

import (
	"encoding/binary"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

func loadSpec(t *testing.T, plain bool) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := specOf(plain, btf.NewCache())
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// checkStruct compares a Go struct with the one the programs were compiled with.
func checkStruct(t *testing.T, s *btf.Struct, v any, names map[string]string) {
	t.Helper()
	typ := reflect.TypeOf(v)
	if size := binary.Size(v); uint32(size) != s.Size || uintptr(size) != typ.Size() {
		t.Errorf("%s: %d bytes in C, %d in Go (%d in memory)", s.Name, s.Size, size, typ.Size())
	}
	if typ.NumField() != len(s.Members) {
		t.Fatalf("%s: %d members in C, %d in Go", s.Name, len(s.Members), typ.NumField())
	}
	for i, m := range s.Members {
		f := typ.Field(i)
		if want := names[f.Name]; f.Name != "_" && want != m.Name {
			t.Errorf("%s: member %d is %s in C, %s in Go", s.Name, i, m.Name, f.Name)
		}
		if uint32(f.Offset) != m.Offset.Bytes() {
			t.Errorf("%s.%s: offset %d in C, %d in Go", s.Name, m.Name, m.Offset.Bytes(), f.Offset)
		}
		if size, err := btf.Sizeof(m.Type); err != nil || uintptr(size) != f.Type.Size() {
			t.Errorf("%s.%s: size %d in C, %d in Go (%v)", s.Name, m.Name, size, f.Type.Size(), err)
		}
	}
}

func TestStructsAreThoseOfThePrograms(t *testing.T) {
	for _, plain := range []bool{false, true} {
		spec := loadSpec(t, plain)
		checkStruct(t, spec.Maps[mapDisks].Value.(*btf.Struct), Disk{}, map[string]string{
			"DiskSeq": "diskseq", "Sectors": "nr_sectors", "Dev": "dev", "Slot": "slot",
			"Shift": "shift", "Flags": "flags", "ZoneSectors": "zone_sectors",
		})
		checkStruct(t, spec.Maps[mapFlights].Value.(*btf.Struct), flight{}, map[string]string{
			"First": "first", "Last": "last", "Slot": "slot",
		})
	}
}

func TestConstantsAreThoseOfTheSource(t *testing.T) {
	src, err := os.ReadFile("track.bpf.c")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint64{
		"PAGE_SIZE": pageSize, "SUMMARY_WORD": summaryOff / 8, "SUMMARY_WORDS": maxPages / 64, "SUMMARY_BYTE_PAGES": 8, "MAX_SLOTS": MaxSlots,
		"WORD_LOST": wordLost, "WORD_DOUBTS": wordDoubts,
		"LOST_PASSTHROUGH": uint64(LostPassthrough), "LOST_REPLUGGED": uint64(LostReplugged),
		"LOST_RESIZED": uint64(LostResized), "LOST_RANGE": uint64(LostRange), "LOST_ALL": uint64(LostAll),
		"LOST_MERGED": uint64(LostMerged),
		"TABLE_SIZE":  tableSize, "TABLE_SHIFT": tableShift, "TABLE_PROBES": tableProbes, "DISK_BIO": DiskBio, "DISK_NVME": DiskNVMe, "DISK_REMAP": DiskRemap, "SINCE_NEVER": sinceNever,
	} {
		m := regexp.MustCompile(`\b` + name + `\b(?: =)? (0x[0-9a-f]+|\d+)`).FindSubmatch(src)
		if m == nil {
			t.Errorf("%s is not in the source", name)
			continue
		}
		if got, err := strconv.ParseUint(string(m[1]), 0, 64); err != nil || got != want {
			t.Errorf("%s: %d in C, %d in Go", name, got, want)
		}
	}
}

func TestObjectHoldsNoPathOfTheBuilder(t *testing.T) {
	for _, path := range []string{"/home", "/root", "/work", "/usr", "/tmp"} {
		if strings.Contains(string(_TrackBytes)+string(_PlainBytes), path+"/") {
			t.Errorf("the object holds a path below %s: it would differ from builder to builder", path)
		}
	}
}
