package survey_test

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"tidemark/linux/mounts/mountstest"
	"tidemark/transfer/survey"
)

// surveyed returns what the survey says of some devices, in their order.
func surveyed(t *testing.T, o survey.Options, paths ...string) []survey.Device {
	t.Helper()
	all, err := survey.Survey(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var found []survey.Device
	for _, path := range paths {
		i := slices.IndexFunc(all, func(d survey.Device) bool { return d.Path == path })
		if i < 0 {
			t.Fatalf("%s is not among %+v", path, all)
		}
		found = append(found, all[i])
	}
	return found
}

func TestTheSurveySaysWhatAMirrorWouldDo(t *testing.T) {
	disk, parts := mountstest.Partitioned(t, 96<<20, 2)
	mountstest.Run(t, "mkfs.ext4", "-q", "-F", "-L", "surveyed", parts[0])
	dir := mountstest.Mount(t, parts[0])
	o := survey.Options{StateDir: t.TempDir()}
	got := surveyed(t, o, disk, parts[0], parts[1])
	for i, view := range []string{"freeze", "freeze", "offline"} {
		if d := got[i]; d.View != view || d.Tracker != "bpf" || d.Lasting || d.Size == 0 {
			t.Errorf("%+v, want %s", d, view)
		}
	}
	if d := got[1]; d.Type != "ext4" || d.Label != "surveyed" || !slices.Equal(d.Mounted, []string{dir}) {
		t.Errorf("%+v", d)
	}
	if got[0].Type != "gpt" || len(got[0].Mounted) > 0 {
		t.Errorf("%+v", got[0])
	}
	o.Tracker = "scan"
	if d := surveyed(t, o, parts[0])[0]; d.Tracker != "scan" {
		t.Errorf("%+v", d)
	}
}

func TestTheSurveySaysWhatIsNotCopiedByItself(t *testing.T) {
	disk, other := mountstest.Disk(t, 128<<20), mountstest.Disk(t, 128<<20)
	mountstest.Mkfs(t, "btrfs", disk, other)
	swap, image := mountstest.Disk(t, 16<<20), mountstest.Image(t, 16<<20)
	mountstest.Run(t, "mkswap", swap)
	loop := mountstest.Attach(t, image)
	got := surveyed(t, survey.Options{StateDir: t.TempDir()}, disk, other, swap, loop)
	for i, want := range []string{other, disk} {
		if d := got[i]; d.View != survey.Refused || !strings.Contains(d.ViewWhy, want) {
			t.Errorf("%+v does not name %s", d, want)
		}
	}
	if d := got[2]; d.Type != "swap" || !strings.Contains(strings.Join(d.Notes, "\n"), "nothing of it is worth a copy") {
		t.Errorf("%+v", d)
	}
	if d := got[3]; !strings.Contains(strings.Join(d.Notes, "\n"), image) {
		t.Errorf("%+v does not name %s", d, image)
	}
}

// The test runs itself again as another user than root.
func TestTheSurveyTellsAUserWhatHeMayNotSee(t *testing.T) {
	if os.Geteuid() == 0 {
		mountstest.Disk(t, 1<<20)
		again := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		again.Dir = "/"
		again.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := again.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	all, err := survey.Survey(t.Context(), survey.Options{})
	if err != nil || len(all) == 0 {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, d := range all {
		if d.Size == 0 || d.View != "" || !strings.Contains(strings.Join(d.Notes, "\n"), "cannot read it") {
			t.Errorf("%+v", d)
		}
	}
}
