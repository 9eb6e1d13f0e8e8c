package dm

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Without device-mapper in the kernel there is a clear refusal, and nothing stays
// behind; with it there is a version.
func TestOpenSaysWhetherThereIsDeviceMapper(t *testing.T) {
	misc, err := os.ReadFile(miscFile)
	if err != nil {
		t.Fatal(err)
	}
	before := exists("/dev/mapper/control")
	c, err := Open()
	if strings.Contains(string(misc), miscName) {
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if v, _ := c.Version(); v.Major != ioctlMajor {
			t.Errorf("version %v", v)
		}
		return
	}
	if err == nil {
		c.Close()
		return // opening it loaded the module
	}
	if !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "modprobe") {
		t.Error(err)
	}
	if !before && exists("/dev/mapper/control") {
		t.Error("a control node was left behind")
	}
}

func TestErrorsSayWhatTheyMean(t *testing.T) {
	for _, x := range []struct {
		cmd   command
		errno unix.Errno
		want  error
	}{
		{cmdDevStatus, unix.ENXIO, ErrNotFound},
		{cmdDevCreate, unix.EBUSY, ErrExists},
		{cmdDevRename, unix.EBUSY, ErrExists},
		{cmdDevRemove, unix.EBUSY, ErrBusy},
		{cmdTableLoad, unix.EBUSY, ErrBusy},
		{cmdArmPoll, unix.ENOTTY, ErrNotSupported},
		{cmdDevStatus, unix.EACCES, os.ErrPermission},
	} {
		err := (&request{op: "do", cmd: x.cmd, name: "x y"}).failed(x.errno)
		if !errors.Is(err, x.want) || !errors.Is(err, x.errno) || !strings.HasPrefix(err.Error(), `dm: do "x y": `) {
			t.Errorf("%v: %v, want %v", x.errno, err, x.want)
		}
	}
}
