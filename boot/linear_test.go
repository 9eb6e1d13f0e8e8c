package boot

import (
	"strings"
	"testing"
)

// Mirrors know a device-mapper device by its UUID: a name alone would make two disks of one
// name, on two machines, the same source.
func TestALinearDeviceIsKnownByItsDataDevice(t *testing.T) {
	seen := map[string]Entry{}
	for _, data := range []string{
		"PARTUUID=aa-1", "PARTUUID=aa-2", "/dev/disk/by-id/wwn-0x1", "/dev/disk/by-id/" + strings.Repeat("n", 200), "/dev/disk/by-id/" + strings.Repeat("n", 201),
	} {
		e := Entry{Name: "data", Data: data, Stage: StageSystem}
		if err := e.Check(); err != nil {
			t.Fatal(err)
		}
		uuid := e.linearUUID()
		if other, ok := seen[uuid]; ok || len(uuid) > 128 || !strings.HasPrefix(uuid, LinearPrefix) {
			t.Errorf("%s: %q (%v has it)", data, uuid, other)
		}
		seen[uuid] = e
		e.Name = "renamed"
		if e.linearUUID() != uuid {
			t.Errorf("%s: another name makes it another device", data)
		}
	}
}
