package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"tidemark/agent/job"
	"tidemark/agent/timer"
	"tidemark/block"
	"tidemark/boot"
	"tidemark/format/epochs"
	"tidemark/format/era"
	"tidemark/format/erastream"
	"tidemark/format/redo"
	"tidemark/format/state"
	"tidemark/format/sums"
	"tidemark/linux/dm"
	"tidemark/linux/dmera"
	"tidemark/linux/fsfreeze"
	"tidemark/track"
	"tidemark/track/bpf"
	eratrack "tidemark/track/era"
	"tidemark/track/history"
	"tidemark/transfer"
	"tidemark/transfer/apply"
	"tidemark/transfer/pairs"
	"tidemark/transfer/streams"
	"tidemark/transfer/transaction"
	"tidemark/view"
)

// exitCode is what the program ends with, one for each class of outcome.
type exitCode int

const (
	exitOK          exitCode = 0
	exitError       exitCode = 1
	exitUsage       exitCode = 2
	exitNoConverge  exitCode = 3
	exitMarkLost    exitCode = 4
	exitDifferent   exitCode = 5
	exitRefused     exitCode = 6
	exitBusy        exitCode = 7
	exitDamaged     exitCode = 8
	exitStale       exitCode = 9
	exitHungUp      exitCode = 128 + exitCode(syscall.SIGHUP)
	exitInterrupted exitCode = 128 + exitCode(syscall.SIGINT)
	exitTerminated  exitCode = 128 + exitCode(syscall.SIGTERM)
)

// meaning says what the code stands for, in help and in the man pages.
func (c exitCode) meaning() string {
	switch c {
	case exitOK:
		return "Done."
	case exitError:
		return "Failed; the message says where and why."
	case exitUsage:
		return "The command line makes no sense; nothing was done."
	case exitNoConverge:
		return "The source is written to faster than --max-freeze allows to copy; the target is as it was before."
	case exitMarkLost:
		return "The changes since the mark cannot be told; the message says why."
	case exitDifferent:
		return "Differences were found."
	case exitRefused:
		return "Refused, to keep data safe: the target is in use, holds something else, or is the source."
	case exitBusy:
		return "Busy: another run is using the mirror, someone else has frozen the filesystem, or the era device or its metadata is in use."
	case exitDamaged:
		return "What is read is damaged, of another kind or of a newer version: the files beside a mirror, dm-era metadata, or a stream; nothing was written."
	case exitStale:
		return "A copy is older than it may be, or its last run failed; the message names it."
	case exitHungUp:
		return "Ended by SIGHUP: the terminal or connection is gone; the same as below."
	case exitInterrupted:
		return "Ended by SIGINT; the target of a mirror is old or new, the next run goes on."
	case exitTerminated:
		return "Ended by SIGTERM; the same."
	}
	return ""
}

// everywhere lists the codes that any command may end with.
func everywhere() []exitCode { return []exitCode{exitOK, exitError, exitUsage} }

// interruptible lists those of a command that takes long.
func interruptible() []exitCode { return []exitCode{exitHungUp, exitInterrupted, exitTerminated} }

// errDifferent says that a comparison found differences.
var errDifferent = errors.New("differences found")

// errStale says that a job is late, or that its last run failed.
var errStale = errors.New("not up to date")

// errNotReady says that the machine lacks what a mirror needs.
var errNotReady = errors.New("this machine cannot mirror a live device")

// usageError is a command line that makes no sense.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// signalError is the cause of a context that a signal ended.
type signalError struct{ signal syscall.Signal }

func (e signalError) Error() string { return "stopped by " + signalName(e.signal) }

func signalName(s syscall.Signal) string {
	switch s {
	case syscall.SIGHUP:
		return "SIGHUP"
	case syscall.SIGTERM:
		return "SIGTERM"
	}
	return "SIGINT"
}

// classify returns the exit code of an error.
func classify(ctx context.Context, err error) exitCode {
	var usage usageError
	var stopped signalError
	if errors.As(err, &usage) {
		return exitUsage
	}
	if errors.As(context.Cause(ctx), &stopped) {
		return 128 + exitCode(stopped.signal)
	}
	for _, class := range classes() {
		if errors.Is(err, class.err) {
			return class.code
		}
	}
	return exitError
}

// class is one sort of error: the code it ends with, and what to do next.
type class struct {
	err  error
	code exitCode
	hint string
}

// classes lists the errors that the packages export, the most telling first.
func classes() []class {
	return slices.Concat(mirrorClasses(), jobClasses(), eraClasses(), machineClasses())
}

func jobClasses() []class {
	return []class{
		{errStale, exitStale, ""},
		{job.ErrBusy, exitBusy, "wait until it ends"},
		{job.ErrUnknown, exitUsage, `"tidemark job list" lists them`},
		{job.ErrConfig, exitError, "man tidemark-job lists the keys"},
		{timer.ErrSchedule, exitError, `"systemd-analyze calendar" tries one`},
		{timer.ErrChanged, exitRefused, `put the change into a file of its own with "systemctl edit", or lose it with --force`},
		{timer.ErrNoService, exitError, `install tidemark's package, or run "make install"`},
		{timer.ErrNoSystemd, exitError, `start "tidemark job run" by other means, as cron`},
	}
}

func mirrorClasses() []class {
	return []class{
		{errDifferent, exitDifferent, ""},
		{track.ErrBadMark, exitUsage, `marks are printed by "tidemark track status" and "tidemark status"`},
		{track.ErrMarkLost, exitMarkLost, `take everything as changed; "tidemark mirror" does, and compares`},
		{eratrack.ErrDiscards, exitRefused, `"tidemark era open" with its data and metadata switches discards off, while it is in use; or use --tracker bpf`},
		{eratrack.ErrUnfit, exitRefused, "--tracker bpf does without the metadata"},
		{bpf.ErrNotTracked, exitError, `"tidemark track start" starts it`},
		{transfer.ErrNotConverging, exitNoConverge, "try when less is written, allow more with --max-freeze, or use --force-freeze"},
		{pairs.ErrInUse, exitRefused, "give another target, or end what uses this one (umount, swapoff, losetup --detach); --force does not help"},
		{pairs.ErrTooSmall, exitRefused, "give a larger target"},
		{pairs.ErrOwnSource, exitRefused, "give a target on another disk"},
		{pairs.ErrHoldsOther, exitRefused, "give another target, or overwrite this one with --force"},
		{pairs.ErrRefused, exitRefused, "give another target"},
		{pairs.ErrNoMirror, exitError, "give the target of a mirror"},
		{view.ErrMounted, exitRefused, "unmount it, or use --view freeze"},
		{view.ErrUnseen, exitRefused, "it may be a filesystem that is unmounted but still in use, or mounted in another mount namespace: end its users, or run in that namespace (nsenter --mount); for a program that uses the device raw and is stopped, use --view freeze if a filesystem on the source is mounted, else --view offline"},
		{view.ErrNothingToFreeze, exitRefused, "see that nobody writes to the source, and use --view offline"},
		{view.ErrHook, exitError, "run the hook by hand, or with --show-hooks to see what it says; --hook-timeout allows it more time"},
		{pairs.ErrPending, exitError, `"tidemark mirror" finishes it`},
		{transaction.ErrNoRoom, exitError, "keep the target, and with --state-dir what is kept beside it, on a disk that is not copied"},
		{transaction.ErrBusy, exitBusy, "wait until it ends"},
		{fsfreeze.ErrBusy, exitBusy, "find out who froze it; fsfreeze -u MOUNTPOINT thaws"},
		{state.ErrNewer, exitDamaged, "use the tidemark that wrote it, or a later one"},
		{sums.ErrNewer, exitDamaged, "use the tidemark that wrote it, or a later one"},
		{state.ErrDamaged, exitDamaged, "remove the folder beside the target; the next run compares everything and builds it anew"},
		{sums.ErrDamaged, exitDamaged, "remove the folder beside the target; the next run compares everything and builds it anew"},
		{state.ErrNotOurs, exitDamaged, "give another target, or remove the folder beside this one"},
		{sums.ErrNotOurs, exitDamaged, "give another target, or remove the folder beside this one"},
		{epochs.ErrNewer, exitMarkLost, "use the tidemark that started tracking"},
		{epochs.ErrDamaged, exitMarkLost, "stop tracking and start it again"},
	}
}

func eraClasses() []class {
	return []class{
		{dmera.ErrHasMetadata, exitRefused, `"tidemark era open" brings its device up; --force makes it anew, and forgets what was written when`},
		{dmera.ErrNotEmpty, exitRefused, "give another metadata device, or overwrite this one with --force"},
		{dmera.ErrRefused, exitRefused, ""},
		{dmera.ErrHeld, exitBusy, `wait until it is dropped; if nobody needs it, "dmsetup message NAME 0 drop_metadata_snap" drops it`},
		{dmera.ErrSuspended, exitBusy, `"dmsetup resume NAME" lets it go on, if nobody else will`},
		{dmera.ErrFuture, exitMarkLost, "take everything as changed; the era is not of this metadata"},
		{dmera.ErrDiscards, exitMarkLost, "take everything as changed once"},
		{dmera.ErrPast, exitMarkLost, "take everything as changed once"},
		{errOtherMetadata, exitMarkLost, "take everything as changed once, and keep the new identity"},
		{dmera.ErrNotEra, exitError, `"tidemark era status" lists era devices; "tidemark era open" brings one up`},
		{dmera.ErrFailed, exitDamaged, `close the device and run "tidemark era check" on the metadata`},
		{dm.ErrBusy, exitBusy, "unmount it, or end what uses it"},
		{dm.ErrExists, exitRefused, "give another name"},
		{dm.ErrNotFound, exitError, `"tidemark era status" lists era devices; "tidemark era open" brings one up`},
		{dm.ErrNotSupported, exitError, "load the module or use another kernel"},
		{errOutput, exitRefused, "give another output"},
		{streams.ErrRefused, exitRefused, "give another target, or end what uses this one"},
		{errMetadataInUse, exitBusy, `take a metadata snapshot and use --metadata-snapshot, or remove the device that uses it`},
		{era.ErrDamaged, exitDamaged, `"tidemark era check" lists every fault, "tidemark era repair" saves what can be read`},
		{era.ErrNotEra, exitDamaged, "give the metadata device of the era device, or an image of it"},
		{era.ErrNewer, exitDamaged, "use a later tidemark"},
		{era.ErrNoSnapshot, exitError, `"dmsetup message NAME 0 take_metadata_snap" takes one`},
		{era.ErrSnapshotGone, exitError, "take a metadata snapshot, and drop it when the command has ended"},
		{era.ErrNoSpace, exitError, `"tidemark era plan" computes the size`},
		{era.ErrXML, exitError, "the output is as it was before"},
		{erastream.ErrOutOfBounds, exitRefused, "see that it is the right target; --grow lets an image become larger"},
		{erastream.ErrDamaged, exitDamaged, "make the stream anew; the target is as it was before"},
		{erastream.ErrNotStream, exitDamaged, `give the output of "tidemark era copy", uncompressed`},
		{errList, exitRefused, "see that the block size is that of the era device, and the list one of this device"},
		{redo.ErrNewer, exitDamaged, "use the tidemark that wrote it, or a later one"},
		{redo.ErrDamaged, exitDamaged, "the target is neither old nor new: copy all of it, and remove the folder beside it"},
		{redo.ErrOldMirror, exitDamaged, `let the tidemark that wrote it finish it, or overwrite the target with "tidemark mirror --force", which compares everything`},
		{redo.ErrNotOurs, exitDamaged, "another program has left it in the folder beside the target"},
		{transaction.ErrOtherOwner, exitRefused, `"tidemark mirror" finishes the change of a mirror, "tidemark era apply" that of a stream`},
		{transaction.ErrOther, exitRefused, `put the target back, or overwrite this one: "tidemark mirror --force" compares everything, "tidemark era apply --discard" forgets what waits`},
		{transaction.ErrChanged, exitRefused, "see who else writes to the target"},
		{apply.ErrPending, exitError, `"tidemark era apply --finish" brings it to the target, --discard forgets it`},
		{boot.ErrNoStableName, exitRefused, "give a partition of a GPT or MBR disk, a logical volume, or a disk that udev knows by an identifier"},
		{boot.ErrNotOurs, exitRefused, "move it away"},
		{boot.ErrChanged, exitRefused, "--force replaces what was changed by hand"},
		{boot.ErrUnsuitable, exitRefused, ""},
		{boot.ErrHibernation, exitRefused, "give up hibernation: put noresume on the kernel's command line (in /etc/default/grub, then update-grub), and boot once"},
		{boot.ErrTab, exitUsage, "the lines of " + boot.TabPath + ": NAME DATA METADATA OPTIONS"},
	}
}

func machineClasses() []class {
	return []class{
		{fsfreeze.ErrNotSupported, exitError, "unmount it and use --view offline"},
		{block.ErrNoCounters, exitError, "set queue/iostats of the disk, in /sys/block, to 1; a few drivers never count"},
		{bpf.ErrNotSupported, exitError, `see "tidemark doctor"; --tracker scan works without`},
		{errNotReady, exitError, ""},
		{syscall.EPERM, exitError, `run as root; "tidemark doctor" tells which capabilities are needed`},
		{syscall.EACCES, exitError, `run as root; "tidemark doctor" tells which capabilities are needed`},
		{history.ErrUnwritable, exitError, "make room in the run folder (--run-dir, by default /run/tidemark), or make it writable"},
		{syscall.ENOSPC, exitError, "make room for the target and the journal beside it, and run mirror again: it goes on, or finishes what was committed"},
	}
}

// hinted is an error with what to do next.
type hinted struct {
	err  error
	hint string
}

func (e hinted) Error() string { return e.err.Error() }
func (e hinted) Unwrap() error { return e.err }

// hintOf returns what to do next about err, "" when there is nothing to say.
func hintOf(err error) string {
	var h hinted
	if errors.As(err, &h) {
		return h.hint
	}
	for _, class := range classes() {
		if errors.Is(err, class.err) {
			return class.hint
		}
	}
	return ""
}

// printError tells what went wrong and what to do next.
func printError(w io.Writer, cmd *cobra.Command, err error, code exitCode) {
	if slices.Contains(interruptible(), code) {
		fmt.Fprintf(w, "tidemark: stopped by %s\n", signalName(syscall.Signal(code-128)))
		if !errors.Is(err, context.Canceled) {
			fmt.Fprintf(w, "tidemark: %v\n", err)
		}
		if hint := (hinted{}); errors.As(err, &hint) && hint.hint != "" {
			fmt.Fprintf(w, "tidemark: %s\n", hint.hint)
		}
		return
	}
	fmt.Fprintf(w, "tidemark: %s\n", strings.TrimPrefix(err.Error(), "tidemark: "))
	hint := hintOf(err)
	if hint == "" && code == exitUsage {
		hint = fmt.Sprintf("see %q", cmd.CommandPath()+" --help")
	}
	if hint != "" {
		fmt.Fprintf(w, "tidemark: hint: %s\n", hint)
	}
}
