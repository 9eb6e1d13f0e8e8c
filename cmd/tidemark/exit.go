package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"tidemark/agent/job"
	"tidemark/agent/timer"
	"tidemark/block"
	"tidemark/boot"
	"tidemark/boot/adopt"
	"tidemark/format/cbtmap"
	"tidemark/format/datto"
	"tidemark/format/epochs"
	"tidemark/format/era"
	"tidemark/format/erastream"
	"tidemark/format/redo"
	"tidemark/format/snapstore"
	"tidemark/format/state"
	"tidemark/format/sums"
	"tidemark/format/thin"
	vaultformat "tidemark/format/vault"
	"tidemark/linux/blkid"
	"tidemark/linux/dm"
	"tidemark/linux/dmera"
	"tidemark/linux/dmhold"
	"tidemark/linux/dmsnap"
	"tidemark/linux/dmthin"
	"tidemark/linux/fiemap"
	"tidemark/linux/fsfreeze"
	"tidemark/linux/loop"
	"tidemark/linux/lvm"
	"tidemark/linux/rawfile"
	"tidemark/snapshot"
	"tidemark/track"
	"tidemark/track/bpf"
	"tidemark/track/cow"
	eratrack "tidemark/track/era"
	"tidemark/track/history"
	trackthin "tidemark/track/thin"
	"tidemark/transfer"
	"tidemark/transfer/apply"
	"tidemark/transfer/browse"
	"tidemark/transfer/cowfiles"
	"tidemark/transfer/inuse"
	"tidemark/transfer/merge"
	"tidemark/transfer/names"
	"tidemark/transfer/origin"
	"tidemark/transfer/pairs"
	"tidemark/transfer/parts"
	"tidemark/transfer/restore"
	"tidemark/transfer/stores"
	"tidemark/transfer/streams"
	"tidemark/transfer/target"
	"tidemark/transfer/tracking"
	"tidemark/transfer/transaction"
	"tidemark/vault"
	"tidemark/vault/store"
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
		return "Refused, to keep data safe: the target is in use, holds something else, or is the source; or a file was changed by hand."
	case exitBusy:
		return "Busy: another run is using the mirror, someone else has frozen the filesystem, or the era device or its metadata is in use."
	case exitDamaged:
		return "What is read is damaged, of another kind or of a newer version: the files beside a mirror, dm-era metadata, or a stream; nothing was written."
	case exitStale:
		return "A copy is older than it may be, or in a state that needs attention; the message names it."
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

// errStale says that a mirror or job is older than it may be, or needs attention.
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

// word is the name of the class of errors that the signal makes.
func (e signalError) word() string {
	switch e.signal {
	case syscall.SIGHUP:
		return "hung-up"
	case syscall.SIGTERM:
		return "terminated"
	}
	return "interrupted"
}

func signalName(s syscall.Signal) string {
	switch s {
	case syscall.SIGHUP:
		return "SIGHUP"
	case syscall.SIGTERM:
		return "SIGTERM"
	}
	return "SIGINT"
}

// classify returns the class of an error: the code that the program ends with, and the
// word that programs are told.
func classify(ctx context.Context, err error) class {
	var usage usageError
	var stopped signalError
	if errors.As(err, &usage) {
		return class{"usage", nil, exitUsage, ""}
	}
	if errors.As(context.Cause(ctx), &stopped) {
		return class{stopped.word(), nil, 128 + exitCode(stopped.signal), ""}
	}
	for _, class := range classes() {
		if errors.Is(err, class.err) {
			return class
		}
	}
	return class{"failed", nil, exitError, ""}
}

// class is one sort of error: the word that programs know it by, which stays what it is,
// the code it ends with, and what to do next.
type class struct {
	name string
	err  error
	code exitCode
	hint string
}

// classes lists the errors that the packages export, the most telling first.
func classes() []class {
	return slices.Concat(vaultClasses(), storeClasses(), volumeClasses(), mirrorClasses(), jobClasses(), eraClasses(), machineClasses())
}

// vaultClasses are those of vaults, and of where they lie.
func vaultClasses() []class {
	return []class{
		// of an image as well; before what says why a vault cannot give it
		{"copy-damaged", restore.ErrDamaged, exitDifferent, "an image's are restored as they are with --unchecked; what a vault has lost is in no other point either, unless it was stored anew"},
		{"no-vault", vault.ErrNoVault, exitError, `"tidemark vault init" makes one; mount what it lies on, if that is not there`},
		{"vault-exists", store.ErrExists, exitRefused, "give another place, or use the vault that is there"},
		{"vault-key", vaultformat.ErrKey, exitRefused, "give another passphrase, or another key with --identity"},
		{"vault-open", errOpenVault, exitRefused, "if it never was, --no-encryption uses it; else somebody has put it there"},
		{"vault-not-encrypted", vault.ErrNotEncrypted, exitRefused, "if it never was, --no-encryption uses it; else somebody has put it there"},
		{"vault-last-key", vault.ErrLastKey, exitRefused, `add another first with "tidemark vault key add"`},
		{"vault-passphrase", errPassphrase, exitError, ""},
		{"no-terminal", errNoTerminal, exitError, "give --passphrase-file, --passphrase-command or --identity"},
		{"vault-busy", vault.ErrBusy, exitBusy, "wait until it ends"},
		{"vault-keeps-nothing", vault.ErrKeepsNothing, exitRefused, "give another rule; \"tidemark forget\" removes single points"},
		{"vault-overtaken", vault.ErrOvertaken, exitError, "run the same command again"},
		{"vault-damages", errDamages, exitDamaged, "what is not named can be restored; the next backup of a disk stores anew what its source still has"},
		{"no-point", vault.ErrNoPoint, exitError, `"tidemark points" lists them`},
		{"point-name", vault.ErrPointName, exitUsage, `"tidemark points" lists them`},
		{"no-range", restore.ErrRange, exitUsage, ""},
		{"vault-newer", vaultformat.ErrNewer, exitDamaged, "use the tidemark that wrote it, or a later one"},
		{"vault-damaged", vaultformat.ErrDamaged, exitDamaged, `"tidemark vault verify" tells what is damaged, and which points`},
		{"vault-foreign", vaultformat.ErrNotVault, exitDamaged, "give the address of a vault"},
		{"other-disk", pairs.ErrOtherDisk, exitRefused, "name another disk of the vault with --disk; or this one, where it goes on with what is now another source"},
		{"disk-name", pairs.ErrDiskName, exitUsage, "name one with --disk"},
		{"vault-locked", store.ErrLocked, exitRefused, "wait for that; nobody can remove it before"},
		{"no-lock", store.ErrNoLock, exitRefused, "make a bucket of S3 with object lock (aws s3api create-bucket --object-lock-enabled-for-bucket, mc mb --with-lock) for a vault with one, and leave --lock away elsewhere"},
		{"store-lost", store.ErrLost, exitError, "see that the server can be reached, and run the same command again: it uses what is stored already"},
	}
}

func jobClasses() []class {
	return []class{
		{"job-busy", job.ErrBusy, exitBusy, "wait until it ends"},
		{"copy-gone", job.ErrGone, exitRefused, "mount its disk; when the copy shall begin anew there, make it once with \"tidemark mirror\""},
		{"job-unknown", job.ErrUnknown, exitUsage, `"tidemark job list" lists them`},
		{"job-config", job.ErrConfig, exitError, "man tidemark-job lists the keys"},
		{"schedule", timer.ErrSchedule, exitError, `"systemd-analyze calendar" tries one`},
		{"unit-changed", timer.ErrChanged, exitRefused, `put the change into a file of its own with "systemctl edit", or lose it with --force`},
		{"no-service", timer.ErrNoService, exitError, `install tidemark's package, or run "make install"`},
		{"no-systemd", timer.ErrNoSystemd, exitError, `start "tidemark job run" by other means, as cron`},
	}
}

func mirrorClasses() []class {
	return []class{
		{"different", errDifferent, exitDifferent, ""},
		{"half-restored", restore.ErrHalf, exitRefused, `"tidemark restore" onto it, again, ends it; "tidemark recover --discard" has it used as it is`},
		{"unchecked", restore.ErrUnchecked, exitRefused, "--unchecked restores it as it is"},
		{"no-room-for-journal", restore.ErrNoJournalRoom, exitRefused, "nothing was written; make room, keep the journal elsewhere with --state-dir, or write in place with --no-journal"},
		{"not-kept", restore.ErrNotKept, exitDifferent, "use another disk"},
		{"restore-pending", restore.ErrPending, exitError, `run "tidemark restore" again: it finishes it`},
		{"stale", errStale, exitStale, ""},
		{"bad-mark", track.ErrBadMark, exitUsage, `marks are printed by "tidemark track status" and "tidemark status"`},
		{"mark-lost", track.ErrMarkLost, exitMarkLost, `take everything as changed; "tidemark mirror" does, and compares`},
		{"era-takes-discards", eratrack.ErrDiscards, exitRefused, `"tidemark era open" with its data and metadata switches discards off, while it is in use; or use --tracker bpf`},
		{"era-unfit", eratrack.ErrUnfit, exitRefused, "--tracker bpf does without the metadata"},
		{"not-tracked", bpf.ErrNotTracked, exitError, `"tidemark track start" starts it`},
		{"untracked", transfer.ErrUntracked, exitNoConverge, "have it tracked, read a device of device-mapper from a snapshot with --view dm, or allow the time with --max-freeze or --force-freeze"},
		{"not-converging", transfer.ErrNotConverging, exitNoConverge, "try when less is written, allow more with --max-freeze, or use --force-freeze; a device of device-mapper is read from a snapshot, where --view auto finds one possible or with --view dm"},
		{"not-a-path", names.ErrNotAPath, exitUsage, "mount the other machine's folder here (sshfs, NFS, rclone mount), or attach its disk (NBD, iSCSI), and name a path or device there"},
		{"browsed", inuse.ErrBrowsed, exitRefused, "that command ends it"},
		{"in-use", inuse.ErrInUse, exitRefused, "give another target, or end what uses this one (umount, swapoff, losetup --detach, the program or virtual machine); --force does not help"},
		{"immutable", target.ErrImmutable, exitError, "lsattr shows it, and chattr -i or -a lets it be written to; root alone does not help"},
		{"no-size", origin.ErrNoSize, exitError, "attach it again, or insert its medium"},
		{"too-small", target.ErrTooSmall, exitRefused, "give a larger target"},
		{"no-device", target.ErrNoDevice, exitRefused, "lsblk lists the disks of this machine; a device that is missing has to be attached"},
		{"own-source", pairs.ErrOwnSource, exitRefused, "give a target on another disk"},
		{"used-since", pairs.ErrUsedSince, exitRefused, "give another target; --force reverts it to the copy that is made now"},
		{"holds-other", target.ErrHoldsOther, exitRefused, "give another target; --adopt goes on with this one if it is an older copy of the source, which it compares first; --force overwrites whatever it holds"},
		{"part", parts.ErrPart, exitRefused, "copy all of it with --whole, or give each device with --pair; --force-part copies the part alone"},
		{"ambiguous", names.ErrAmbiguous, exitRefused, "name one of them by its path; a copy has the UUID and label of its original"},
		{"no-such-name", names.ErrNone, exitError, "blkid lists what there is"},
		{"no-blkid", blkid.ErrMissing, exitError, ""},
		{"refused", target.ErrRefused, exitRefused, "give another target"},
		{"no-mirror", target.ErrNoMirror, exitError, "give the target of a mirror"},
		{"mounted", view.ErrMounted, exitRefused, "unmount it, or use --view freeze"},
		{"unseen-use", view.ErrUnseen, exitRefused, "it may be a filesystem that is unmounted but still in use, or mounted in another mount namespace: end its users, or run in that namespace (nsenter --mount); for a program that uses the device raw and is stopped, use --view freeze if a filesystem on the source is mounted, else --view offline"},
		{"nothing-to-freeze", view.ErrNothingToFreeze, exitRefused, "see that nobody writes to the source, and use --view offline"},
		{"hook-failed", view.ErrHook, exitError, "run the hook by hand, or with --show-hooks to see what it says; --hook-timeout allows it more time"},
		{"pending", target.ErrPending, exitError, `"tidemark recover" finishes it, also without its source`},
		{"beside-original", browse.ErrOriginal, exitRefused, ""},
		{"nothing-to-mount", browse.ErrNothing, exitError, ""},
		{"mounted-already", browse.ErrMounted, exitRefused, `"tidemark umount" on that folder first, or give another one`},
		{"not-ours-to-unmount", browse.ErrNotOurs, exitRefused, "umount(8) unmounts anything"},
		{"files-in-use", browse.ErrBusy, exitBusy, "leave the folder, and end what uses it: fuser -vm lists that"},
		{"no-loop-devices", loop.ErrNotSupported, exitError, ""},
		{"incomplete", target.ErrIncomplete, exitRefused, `"tidemark mirror" from its own source goes on with it; when it is something else by now, "tidemark recover --discard" forgets that it was to be a mirror`},
		{"no-room-beside-source", transaction.ErrNoRoom, exitError, "keep the target, and with --state-dir what is kept beside it, on a disk that is not copied"},
		{"mirror-busy", transaction.ErrBusy, exitBusy, "wait until it ends"},
		{"frozen-by-other", fsfreeze.ErrBusy, exitBusy, "find out who froze it; fsfreeze -u MOUNTPOINT thaws"},
		{"state-newer", state.ErrNewer, exitDamaged, "use the tidemark that wrote it, or a later one"},
		{"sums-newer", sums.ErrNewer, exitDamaged, "use the tidemark that wrote it, or a later one"},
		{"state-damaged", state.ErrDamaged, exitDamaged, `"tidemark mirror --adopt" compares everything and builds it anew`},
		{"sums-damaged", sums.ErrDamaged, exitDamaged, `"tidemark mirror --adopt" compares everything and builds it anew`},
		{"state-foreign", state.ErrNotOurs, exitDamaged, "give another target, or remove the folder beside this one"},
		{"sums-foreign", sums.ErrNotOurs, exitDamaged, "give another target, or remove the folder beside this one"},
		{"epochs-newer", epochs.ErrNewer, exitMarkLost, "use the tidemark that started tracking"},
		{"epochs-damaged", epochs.ErrDamaged, exitMarkLost, "stop tracking and start it again"},
	}
}

func eraClasses() []class {
	return []class{
		{"era-has-metadata", dmera.ErrHasMetadata, exitRefused, `"tidemark era open" brings its device up; --force makes it anew, and forgets what was written when`},
		{"era-metadata-not-empty", dmera.ErrNotEmpty, exitRefused, "give another metadata device, or overwrite this one with --force"},
		{"era-refused", dmera.ErrRefused, exitRefused, ""},
		{"era-snapshot-held", dmera.ErrHeld, exitBusy, `wait until it is dropped; if nobody needs it, "dmsetup message NAME 0 drop_metadata_snap" drops it`},
		{"era-suspended", dmera.ErrSuspended, exitBusy, `"dmsetup resume NAME" lets it go on, if nobody else will`},
		{"era-future", dmera.ErrFuture, exitMarkLost, "take everything as changed; the era is not of this metadata"},
		{"era-discards-missed", dmera.ErrDiscards, exitMarkLost, "take everything as changed once"},
		{"era-past", dmera.ErrPast, exitMarkLost, "take everything as changed once"},
		{"era-other-metadata", errOtherMetadata, exitMarkLost, "take everything as changed once, and keep the new identity"},
		{"no-era-device", dmera.ErrNotEra, exitError, `"tidemark era status" lists era devices; "tidemark era open" brings one up`},
		{"era-failed", dmera.ErrFailed, exitDamaged, `close the device and run "tidemark era check" on the metadata`},
		{"dm-busy", dm.ErrBusy, exitBusy, "unmount it, or end what uses it"},
		{"dm-exists", dm.ErrExists, exitRefused, "give another name"},
		{"dm-not-found", dm.ErrNotFound, exitError, `"tidemark era status" lists era devices; "tidemark era open" brings one up`},
		{"dm-not-supported", dm.ErrNotSupported, exitError, "load the module or use another kernel"},
		{"output-refused", errOutput, exitRefused, "give another output"},
		{"stream-refused", streams.ErrRefused, exitRefused, "give another target, or end what uses this one"},
		{"era-metadata-in-use", errMetadataInUse, exitBusy, `take a metadata snapshot and use --metadata-snapshot, or remove the device that uses it`},
		{"era-damaged", era.ErrDamaged, exitDamaged, `"tidemark era check" lists every fault, "tidemark era repair" saves what can be read`},
		{"era-foreign", era.ErrNotEra, exitDamaged, "give the metadata device of the era device, or an image of it"},
		{"era-newer", era.ErrNewer, exitDamaged, "use a later tidemark"},
		{"thin-snapshot-held", dmthin.ErrHeld, exitBusy, ""},
		{"thin-pool-failed", dmthin.ErrFailed, exitError, "see the kernel's log; thin_check and thin_repair of thin-provisioning-tools"},
		{"no-thin-pool", dmthin.ErrNotPool, exitError, "give a thin pool in use, or a volume of one"},
		{"thin-damaged", thin.ErrDamaged, exitDamaged, `"tidemark thin check" lists every fault; thin_repair of thin-provisioning-tools writes what can be read to new metadata`},
		{"thin-foreign", thin.ErrNotThin, exitDamaged, "give the metadata device of a thin pool, or an image of it"},
		{"thin-newer", thin.ErrNewer, exitDamaged, "use a later tidemark"},
		{"thin-no-snapshot", thin.ErrNoSnapshot, exitError, `"dmsetup message POOL 0 reserve_metadata_snap" takes one`},
		{"no-thin-device", thin.ErrNoDevice, exitError, `"tidemark thin ls" lists them`},
		{"era-no-snapshot", era.ErrNoSnapshot, exitError, `"dmsetup message NAME 0 take_metadata_snap" takes one`},
		{"era-snapshot-gone", era.ErrSnapshotGone, exitError, "take a metadata snapshot, and drop it when the command has ended"},
		{"era-no-space", era.ErrNoSpace, exitError, `"tidemark era plan" computes the size`},
		{"era-bad-xml", era.ErrXML, exitError, "the output is as it was before"},
		{"stream-out-of-bounds", erastream.ErrOutOfBounds, exitRefused, "see that it is the right target; --grow lets an image become larger"},
		{"stream-damaged", erastream.ErrDamaged, exitDamaged, "make the stream anew; the target is as it was before"},
		{"stream-foreign", erastream.ErrNotStream, exitDamaged, `give the output of "tidemark era copy", uncompressed`},
		{"bad-list", errList, exitRefused, "see that the block size is that of the era device, and the list one of this device"},
		{"journal-newer", redo.ErrNewer, exitDamaged, "use the tidemark that wrote it, or a later one"},
		{"journal-damaged", redo.ErrDamaged, exitDamaged, `the target is neither old nor new: copy all of it, for a mirror with "tidemark mirror --force"; "tidemark recover --discard" forgets what waits`},
		{"journal-old", redo.ErrOldMirror, exitDamaged, `let the tidemark that wrote it finish it, or overwrite the target with "tidemark mirror --force", which compares everything`},
		{"journal-foreign", redo.ErrNotOurs, exitDamaged, "another program has left it in the folder beside the target"},
		{"journal-other-owner", transaction.ErrOtherOwner, exitRefused, `"tidemark mirror" finishes the change of a mirror, "tidemark era apply" that of a stream`},
		{"other-target", transaction.ErrOther, exitRefused, `put the target back, or overwrite this one: "tidemark mirror --force" compares everything; "tidemark recover --discard", or "tidemark era apply --discard" for a stream, forgets what waits`},
		{"target-changed", transaction.ErrChanged, exitRefused, "see who else writes to the target"},
		{"stream-pending", apply.ErrPending, exitError, `"tidemark era apply --finish" brings it to the target, --discard forgets it`},
		{"boot-no-stable-name", boot.ErrNoStableName, exitRefused, "give a partition of a GPT or MBR disk, a logical volume, or a disk that udev knows by an identifier"},
		{"boot-foreign", boot.ErrNotOurs, exitRefused, "move it away"},
		{"boot-changed", boot.ErrChanged, exitRefused, "--force replaces what was changed by hand"},
		{"boot-unsuitable", boot.ErrUnsuitable, exitRefused, ""},
		{"boot-hibernation", boot.ErrHibernation, exitRefused, "give up hibernation: put noresume on the kernel's command line (in /etc/default/grub, then update-grub), and boot once"},
		{"adopt-refused", adopt.ErrRefused, exitRefused, ""},
		{"adopt-named", errNamed, exitRefused, "name it by its UUID, LABEL or PARTUUID there, which works before and after; for root= run update-grub or the like then"},
		{"boot-bad-tab", boot.ErrTab, exitUsage, "the lines of " + boot.TabPath + ": NAME DATA METADATA|linear OPTIONS"},
	}
}

func storeClasses() []class {
	return []class{
		{"store-overflowed", snapstore.ErrOverflowed, exitRefused, "what the snapshot was cannot be told any more; remove it, and give the next one more room"},
		{"store-invalid", snapstore.ErrInvalid, exitRefused, "what the snapshot was cannot be told any more; remove it, and see the kernel's log of that time"},
		{"store-foreign", snapstore.ErrNotStore, exitDamaged, "give the COW device of a persistent dm-snapshot (type P or PO), or an image of it"},
		{"store-newer", snapstore.ErrNewer, exitDamaged, "use a later tidemark"},
		{"store-damaged", snapstore.ErrDamaged, exitDamaged, `"tidemark snapstore check" lists every fault`},
		{"store-live", dmsnap.ErrLive, exitRefused, ""},
		{"apply-cut-off", stores.ErrCutOff, exitError, "run the same command again: it finishes it; keep a file of --undo, and leave --undo away then"},
		{"store-on-origin", stores.ErrSame, exitRefused, "give the device that the store is a snapshot of, which it does not lie on"},
		{"direct-refused", stores.ErrDirect, exitRefused, "leave --direct away"},
		{"undo-refused", stores.ErrUndo, exitRefused, "give a file that does not exist"},
		{"merge-pending", merge.ErrPending, exitError, "run the same command again: it finishes it"},
		{"target-is-a-mirror", target.ErrMirror, exitRefused, "give another target"},
		{"cow-not-clean", datto.ErrNotClean, exitRefused, "have the driver close it: transition-to-snapshot closes the file before, umount any"},
		{"cow-foreign", datto.ErrNotCOW, exitDamaged, "give the file that was named to dbdctl or elioctl as the COW file"},
		{"cow-newer", datto.ErrNewer, exitDamaged, "use a later tidemark"},
		{"cow-damaged", datto.ErrDamaged, exitDamaged, "make a new image of the whole snapshot"},
		{"cow-no-data", datto.ErrNoData, exitRefused, "an image of it can be made while the snapshot is there, of its device"},
		{"cow-other", datto.ErrOther, exitRefused, "merge the files of the snapshots between, in their order, or make a new image of the whole snapshot"},
		{"no-driver", cowfiles.ErrNoDriver, exitError, "give a file with its answer, as it was in /proc/datto-info, with --info"},
		{"wrong-image", cowfiles.ErrWrongImage, exitRefused, "give the image of the snapshot before, or make a new one of the whole snapshot"},
		{"cbt-unknown", cbtmap.ErrUnknown, exitMarkLost, "take everything as changed"},
		{"cbt-damaged", cbtmap.ErrDamaged, exitDamaged, "see that the size of the device and of its blocks is that of the map"},
	}
}

// volumeClasses are those of LVM's volumes, and of live snapshots.
func volumeClasses() []class {
	return []class{
		{"lvm-half-applied", lvm.ErrHalfDone, exitError, `"lvs -o +tags" shows it, until that command has ended`},
		{"lvm-refused", lvm.ErrRefused, exitRefused, ""},
		{"lvm-in-use", lvm.ErrInUse, exitRefused, "unmount it, or end what uses it"},
		{"lvm-unknown", lvm.ErrNotFound, exitError, `"lvs" lists the volumes`},
		{"lvm-missing", lvm.ErrMissing, exitError, ""},
		{"snapshot-plain", snapshot.ErrPlain, exitRefused, `"tidemark adopt" makes it one, at once or at the next boot; "tidemark mirror" needs no snapshot`},
		{"snapshot-lvm", snapshot.ErrLVM, exitRefused, `--store lvm has LVM make a snapshot in its group; "tidemark mirror" needs none`},
		{"snapshot-not-kept", snapshot.ErrNotKept, exitRefused, ""},
		{"no-rollback", snapshot.ErrNoRollback, exitRefused, ""},
		{"snapshot-unfit", snapshot.ErrUnfit, exitRefused, ""},
		{"snapshot-store", snapshot.ErrStore, exitRefused, ""},
		{"snapshot-no-room", snapshot.ErrNoRoom, exitRefused, ""},
		{"snapshot-unknown", snapshot.ErrNotFound, exitError, `"tidemark snapshot list" lists them`},
		{"snapshot-exists", snapshot.ErrExists, exitRefused, "give another name"},
		{"snapshot-in-use", snapshot.ErrInUse, exitBusy, "unmount it, or end what reads it; --force ends the snapshot all the same"},
		{"snapshot-mode", snapshot.ErrMode, exitRefused, ""},
		{"snapshot-lost", errSnapshotLost, exitDamaged, `"tidemark snapshot destroy" removes what is left of it`},
		{"rawfile-unfit", rawfile.ErrUnfit, exitRefused, "\"tidemark track resume\" makes the file anew; the marks are lost at the next reboot otherwise"},
		{"rawfile-damaged", rawfile.ErrDamaged, exitDamaged, ""},
		{"rawfile-no-room", rawfile.ErrNoRoom, exitRefused, ""},
		{"fiemap-unfit", fiemap.ErrUnfit, exitRefused, "give another place for the store with --store"},
		{"thin-not-a-volume", trackthin.ErrNotThin, exitRefused, "name a thin volume itself, or use another tracker and view"},
		{"thin-unfit", trackthin.ErrUnfit, exitRefused, "make room in the pool, or use another tracker and view"},
		{"thin-alone", tracking.ErrThinAlone, exitRefused, "ask for both, or for one of them alone"},
		{"dm-hold-refused", dmhold.ErrRefused, exitRefused, ""},
		{"dm-frozen-by-other", dmhold.ErrFrozen, exitBusy, "find out who froze it; fsfreeze -u MOUNTPOINT thaws"},
		{"dm-hold-expired", dmhold.ErrExpired, exitNoConverge, "allow more time with --max-freeze"},
		{"dm-hold-partly", dmhold.ErrPartly, exitError, "run the same command again: it removes what is left"},
		{"cow-not-live", cow.ErrNoSnapshot, exitRefused, `"dmsetup table" lists the live snapshots; "tidemark snapstore list" reads any other store`},
		{"cow-not-origin", cow.ErrNotOrigin, exitRefused, "name that as the source"},
		{"cow-unfit", cow.ErrUnfit, exitRefused, "make another snapshot, or use another tracker"},
	}
}

func machineClasses() []class {
	return []class{
		{"freeze-not-supported", fsfreeze.ErrNotSupported, exitError, "unmount it and use --view offline"},
		{"no-counters", block.ErrNoCounters, exitError, "set queue/iostats of the disk, in /sys/block, to 1; a few drivers never count"},
		{"tracking-not-supported", bpf.ErrNotSupported, exitError, `see "tidemark doctor"; --tracker scan works without`},
		{"not-ready", errNotReady, exitError, ""},
		{"not-permitted", syscall.EPERM, exitError, `run as root; "tidemark doctor" tells which capabilities are needed`},
		{"access-denied", syscall.EACCES, exitError, `run as root; "tidemark doctor" tells which capabilities are needed`},
		{"run-folder-unwritable", history.ErrUnwritable, exitError, "make room in the run folder (--run-dir, by default /run/tidemark), or make it writable"},
		{"exists", fs.ErrExist, exitRefused, "give another name, or remove it"},
		{"no-space", syscall.ENOSPC, exitError, "make room, for the journal beside the target too, and run the same command again: it goes on, begins anew, or finishes what was committed"},
		{"source-unusable", origin.ErrSource, exitError, ""},
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

// told is an error of which the JSON on stdout tells already.
type told struct{ err error }

func (e told) Error() string { return e.err.Error() }
func (e told) Unwrap() error { return e.err }

// failure is what a command that failed prints with --json, unless it has told already.
type failure struct {
	Error string   `json:"error"`
	Code  string   `json:"code"` // name of the class
	Exit  exitCode `json:"exit"`
	Hint  string   `json:"hint,omitempty"`
}

// failureOf describes an error that cmd ended with.
func failureOf(ctx context.Context, cmd *cobra.Command, err error) failure {
	c := classify(ctx, err)
	f := failure{Error: strings.TrimPrefix(err.Error(), "tidemark: "), Code: c.name, Exit: c.code}
	if slices.Contains(interruptible(), c.code) {
		stopped := "stopped by " + signalName(syscall.Signal(c.code-128))
		if f.Error = stopped; !errors.Is(err, context.Canceled) {
			f.Error += "\n" + err.Error()
		}
		if hint := (hinted{}); errors.As(err, &hint) && hint.hint != "" {
			f.Error += "\n" + hint.hint
		}
		return f
	}
	if f.Hint = hintOf(err); f.Hint == "" && c.code == exitUsage {
		f.Hint = fmt.Sprintf("see %q", cmd.CommandPath()+" --help")
	}
	return f
}

// print tells people what went wrong and what to do next.
func (f failure) print(w io.Writer) {
	fmt.Fprintf(w, "tidemark: %s\n", strings.ReplaceAll(f.Error, "\n", "\ntidemark: "))
	if f.Hint != "" {
		fmt.Fprintf(w, "tidemark: hint: %s\n", f.Hint)
	}
}

// wantsJSON reports whether a command line asks for JSON, also where it could not be
// parsed.
func wantsJSON(cmd *cobra.Command, args []string) bool {
	flag := cmd.Flags().Lookup("json")
	return flag != nil && (flag.Value.String() == "true" || slices.Contains(args, "--json"))
}
