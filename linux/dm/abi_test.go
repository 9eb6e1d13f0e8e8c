package dm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

// structs are the structs of abi.go and, by field, what the header calls them.
var structs = []struct {
	v      any
	c      string
	size   int // ours, 0: that of C
	fields map[string]string
}{
	{header{}, "dm_ioctl", 0, map[string]string{
		"Version": "version", "DataSize": "data_size", "DataStart": "data_start", "TargetCount": "target_count",
		"OpenCount": "open_count", "Flags": "flags", "EventNr": "event_nr", "Padding": "padding", "Dev": "dev",
		"Name": "name", "UUID": "uuid", "Data": "data",
	}},
	{targetSpec{}, "dm_target_spec", 0, map[string]string{
		"Start": "sector_start", "Len": "length", "Status": "status", "Next": "next", "Type": "target_type",
	}},
	{nameEntry{}, "dm_name_list", nameEntrySize, map[string]string{"Dev": "dev", "Next": "next"}},
	{versionEntry{}, "dm_target_versions", 0, map[string]string{"Next": "next", "Version": "version"}},
	{depsHead{}, "dm_target_deps", 0, map[string]string{"Count": "count", "Padding": "padding"}},
	{messageHead{}, "dm_target_msg", 0, map[string]string{"Sector": "sector"}},
}

// constants are expressions of C and what they are here.
var constants = map[string]uint64{
	"sizeof(struct dm_ioctl)": headerSize, "offsetof(struct dm_ioctl, data)": headerLeast,
	"sizeof(struct dm_target_spec)": specSize, "offsetof(struct dm_name_list, name)": nameEntrySize,
	"offsetof(struct dm_target_versions, name)": versionEntrySize, "offsetof(struct dm_target_deps, dev)": depsHeadSize,
	"offsetof(struct dm_target_msg, message)": messageHeadSize,
	"DM_NAME_LEN": nameLen, "DM_UUID_LEN": uuidLen, "DM_MAX_TYPE_NAME": typeLen, "DM_VERSION_MAJOR": ioctlMajor,
	"DM_VERSION": uint64(cmdVersion.number()), "DM_LIST_DEVICES": uint64(cmdListDevices.number()),
	"DM_DEV_CREATE": uint64(cmdDevCreate.number()), "DM_DEV_REMOVE": uint64(cmdDevRemove.number()),
	"DM_DEV_RENAME": uint64(cmdDevRename.number()), "DM_DEV_SUSPEND": uint64(cmdDevSuspend.number()),
	"DM_DEV_STATUS": uint64(cmdDevStatus.number()), "DM_TABLE_LOAD": uint64(cmdTableLoad.number()),
	"DM_TABLE_CLEAR": uint64(cmdTableClear.number()), "DM_TABLE_DEPS": uint64(cmdTableDeps.number()),
	"DM_TABLE_STATUS": uint64(cmdTableStatus.number()), "DM_LIST_VERSIONS": uint64(cmdListVersions.number()),
	"DM_TARGET_MSG": uint64(cmdTargetMessage.number()), "DM_DEV_ARM_POLL": uint64(cmdArmPoll.number()),
	"DM_GET_TARGET_VERSION": uint64(cmdTargetVersion.number()),
	"DM_READONLY_FLAG":      uint64(flagReadOnly), "DM_SUSPEND_FLAG": uint64(flagSuspend),
	"DM_STATUS_TABLE_FLAG": uint64(flagStatusTable), "DM_ACTIVE_PRESENT_FLAG": uint64(flagActivePresent),
	"DM_INACTIVE_PRESENT_FLAG": uint64(flagInactivePresent), "DM_BUFFER_FULL_FLAG": uint64(flagBufferFull),
	"DM_SKIP_LOCKFS_FLAG": uint64(flagSkipLockFS), "DM_NOFLUSH_FLAG": uint64(flagNoFlush),
	"DM_QUERY_INACTIVE_TABLE_FLAG": uint64(flagQueryInactive), "DM_UEVENT_GENERATED_FLAG": uint64(flagUeventGenerated),
	"DM_UUID_FLAG": uint64(flagUUID), "DM_DATA_OUT_FLAG": uint64(flagDataOut), "DM_DEFERRED_REMOVE": uint64(flagDeferredRemove),
	"DM_INTERNAL_SUSPEND_FLAG": uint64(flagInternalSuspend), "DM_NAME_LIST_FLAG_HAS_UUID": uint64(entryHasUUID),
	"IPC_CREAT": ipcCreate, "IPC_EXCL": ipcExclusive, "IPC_RMID": ipcRemove, "GETVAL": semGetValue, "SETVAL": semSetValue,
}

// wantC is what a C program that prints every constant, offset and size must say.
func wantC() map[string]uint64 {
	want := map[string]uint64{}
	maps.Copy(want, constants)
	for _, s := range structs {
		typ := reflect.TypeOf(s.v)
		for f := range typ.Fields() {
			want[fmt.Sprintf("offsetof(struct %s, %s)", s.c, s.fields[f.Name])] = uint64(f.Offset)
			want[fmt.Sprintf("sizeof(((struct %s *)0)->%s)", s.c, s.fields[f.Name])] = uint64(f.Type.Size())
		}
	}
	return want
}

func TestStructsAndConstantsAreThoseOfTheKernel(t *testing.T) {
	want := wantC()
	var src strings.Builder
	src.WriteString("#include <stddef.h>\n#include <stdio.h>\n#include <sys/ipc.h>\n#include <sys/sem.h>\n" +
		"#include <linux/ioctl.h>\n#include <linux/dm-ioctl.h>\nint main(void) {\n")
	for expr := range want {
		fmt.Fprintf(&src, "printf(\"%%llu %%s\\n\", (unsigned long long)(%s), %q);\n", expr, expr)
	}
	src.WriteString("return 0; }\n")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "abi.c"), []byte(src.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "abi")
	if out, err := exec.Command("gcc", "-o", bin, filepath.Join(dir, "abi.c")).CombinedOutput(); err != nil {
		t.Fatalf("gcc (install gcc and linux-libc-dev): %v\n%s", err, out)
	}
	out, err := exec.Command(bin).Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for line := range strings.Lines(string(out)) {
		number, expr, _ := strings.Cut(strings.TrimSpace(line), " ")
		lines++
		if number != fmt.Sprint(want[expr]) {
			t.Errorf("%s is %s in C, %d here", expr, number, want[expr])
		}
	}
	if lines != len(want) {
		t.Errorf("%d answers to %d questions", lines, len(want))
	}
}

// What is encoded field by field has no padding that the struct does not show.
func TestStructsHaveNoHiddenPadding(t *testing.T) {
	for _, s := range structs {
		size, typ := binary.Size(s.v), reflect.TypeOf(s.v)
		last := typ.Field(typ.NumField() - 1)
		if size != int(last.Offset+last.Type.Size()) {
			t.Errorf("%s: %d bytes encoded, the last field ends at %d", typ.Name(), size, last.Offset+last.Type.Size())
		}
	}
}

func TestDeviceNumbersAreThoseOfTheKernel(t *testing.T) {
	for _, d := range []sysfs.Dev{
		{Major: 8, Minor: 1},
		{Major: 253, Minor: 0},
		{Major: 253, Minor: 255},
		{Major: 253, Minor: 256},
		{Major: 4095, Minor: 0xfffff},
		{Major: 1, Minor: 0x12345},
	} {
		if got := sysfs.DevOf(unix.Mkdev(d.Major, d.Minor)); got != d {
			t.Errorf("%v became %v", d, got)
		}
	}
	if n := unix.Mkdev(253, 0x123); n != 0x10fd23 {
		t.Errorf("%#x, the kernel has 0x10fd23", n)
	}
}

func TestRequestsHaveTheirParts(t *testing.T) {
	r := request{cmd: cmdTargetMessage, kernel: "name", uuid: "uuid", flags: flagNoFlush, eventNr: 7, targets: 2, data: []byte("data")}
	buf := make([]byte, 512)
	r.encode(buf)
	var h header
	if !get(buf, &h) {
		t.Fatal("too short")
	}
	name, _ := text(h.Name[:])
	uuid, _ := text(h.UUID[:])
	if name != "name" || uuid != "uuid" || h.Flags != flagNoFlush || h.EventNr != 7 || h.TargetCount != 2 ||
		h.DataSize != 512 || h.DataStart != headerSize || h.Version != [3]uint32{4, 0, 0} || !bytes.HasPrefix(buf[headerSize:], []byte("data\x00")) {
		t.Errorf("%+v", h)
	}
}
