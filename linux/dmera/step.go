package dmera

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"tidemark/format/era"
	"tidemark/linux/dm"
	"tidemark/linux/reexec"
	"tidemark/linux/sysfs"
)

// A step suspends a device and resumes it. It must not be left half done: while the device
// is suspended its users wait. So a hardened process of its own makes the step (see
// reexec.Harden): the program may lie on the device.

// Step is the part of this program that makes a step, for reexec.Main. It writes an error
// to standard error.
var Step = reexec.Part{Name: "tidemark-era-step", Run: runPart}

// The steps.
const (
	stepDrain  = "drain"
	stepResize = "resize"
	stepAdopt  = "adopt"
	stepRebase = "rebase"
)

// runPart makes the step that this process was started for.
func runPart(args []string) int {
	reexec.Harden()
	if len(args) < 2 {
		return 2
	}
	if err := step(args[0], args[1], args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// step makes one step on the device of that name, when it is still the one with
// the number in the first argument.
func step(what, name string, args []string) error {
	ctl, err := dm.Open()
	if err != nil {
		return err
	}
	defer ctl.Close()
	info, err := ctl.Info(name)
	if err != nil {
		return err
	}
	if len(args) == 0 || info.Dev().String() != args[0] {
		return fmt.Errorf("%s: %w: another device has taken the name", name, ErrNotEra)
	}
	if err := onlyTable(info); err != nil {
		return err
	}
	switch {
	case what == stepDrain && len(args) == 1:
		return drain(ctl, name)
	case what == stepResize && len(args) == 2:
		sectors, err := strconv.ParseUint(args[1], 10, 64)
		if err != nil {
			return err
		}
		return reload(ctl, info, change{sectors: sectors})
	case what == stepAdopt && len(args) == 2:
		var id era.Identity
		if err := id.UnmarshalText([]byte(args[1])); err != nil {
			return err
		}
		return reload(ctl, info, change{identity: id})
	case what == stepRebase && len(args) == 2:
		data, err := sysfs.ParseDev(args[1])
		if err != nil {
			return err
		}
		return reload(ctl, info, change{data: data})
	}
	return fmt.Errorf("unknown step %q %q", what, args)
}

// onlyTable refuses a device with a second table loaded: a resume would put that table
// in the place of the era device's own.
func onlyTable(info dm.Info) error {
	if info.InactiveTable {
		return refused("%s: another table waits for it, and would take the place of its own when it is resumed; \"dmsetup clear %s\" drops that table", info.Name, info.Name)
	}
	return nil
}

// runStep starts a process for the step and waits until it has been made. What the
// process would refuse is refused here, so that the error says so.
func (d *Device) runStep(what string, args ...string) error {
	info, err := d.ctl.Info(d.Name())
	if err != nil {
		return fmt.Errorf("dmera: %w", err)
	}
	if err := onlyTable(info); err != nil {
		return err
	}
	var said strings.Builder
	p := reexec.Command(Step, append([]string{what, d.Name(), d.info.Dev().String()}, args...)...)
	p.Stderr = &said
	err = p.Run()
	if text := strings.TrimSpace(said.String()); err != nil && text != "" {
		err = errors.New(text)
	}
	if err != nil {
		return fmt.Errorf("dmera: %s: %s: %w", d.Name(), what, err)
	}
	return nil
}
