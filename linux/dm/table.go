package dm

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/linux/sysfs"
)

// Target is one target of a table: what a range of the device's sectors maps to. As
// the kernel reports a status, Params is the target's status.
type Target struct {
	Start, Len   uint64 // sectors of 512 bytes
	Type, Params string // as in dmsetup's tables
}

// String returns the target as a line of dmsetup's tables.
func (t Target) String() string {
	return strings.TrimRight(fmt.Sprintf("%d %d %s %s", t.Start, t.Len, t.Type, t.Params), " ")
}

// TargetType is a kind of target that the kernel has.
type TargetType struct {
	Name    string
	Version Version
}

// LoadOptions say how to load a table. The zero value makes the device writable.
type LoadOptions struct {
	ReadOnly bool
}

// Load puts a table into the inactive slot, in the place of one that is there. The
// device goes on with its active table until Resume. The error wraps ErrNotSupported
// when the kernel lacks a target, ErrBusy when a device in the table is in use.
func (c *Control) Load(name string, table []Target, o LoadOptions) (Info, error) {
	r, err := onDevice("load table of", cmdTableLoad, name)
	if err != nil {
		return Info{}, err
	}
	if err := checkTable(table); err != nil {
		return Info{}, fmt.Errorf("dm: load table of %q: %w", name, err)
	}
	r.data, r.targets = encodeTable(table), uint32(len(table))
	if o.ReadOnly {
		r.flags = flagReadOnly
	}
	log := openKernelLog()
	defer log.close()
	info, err := c.runInfo(r)
	if err != nil {
		return Info{}, c.loadFailed(name, table, err, log)
	}
	return info, nil
}

// loadFailed adds the reason why a table would not load, as far as it can be told.
func (c *Control) loadFailed(name string, table []Target, err error, log kernelLog) error {
	info, ierr := c.Info(name)
	if ierr != nil {
		return err
	}
	said := log.about(info.Dev())
	if i, unknown := c.unknownType(table); unknown && errors.Is(err, unix.EINVAL) {
		t := table[i].Type
		return fmt.Errorf("dm: load table of %q: target %d (%s): %w: no such target (modprobe dm-%s)%s", name, i, t, ErrNotSupported, t, said)
	}
	// ErrNotFound would say that the device itself is missing, not a device in its table.
	cause := errors.Unwrap(err)
	if errors.Is(err, ErrNotFound) {
		cause = fmt.Errorf("a device in it is missing: %w", unix.ENXIO)
	}
	return fmt.Errorf("dm: load table of %q: %s: %w%s", name, blame(table), cause, said)
}

// checkTable finds the faults that the kernel refuses without saying where.
func checkTable(table []Target) error {
	if len(table) == 0 {
		return errors.New("it has no targets")
	}
	var end uint64
	for i, t := range table {
		at := fmt.Sprintf("target %d (%s)", i, t.Type)
		switch {
		case t.Type == "" || len(t.Type) >= typeLen || strings.ContainsAny(t.Type, "\x00 "):
			return fmt.Errorf("%s: not a type of target", at)
		case t.Len == 0:
			return fmt.Errorf("%s: it has no sectors", at)
		case t.Start != end:
			return fmt.Errorf("%s: starts at sector %d, the one before ends at %d", at, t.Start, end)
		case t.Start+t.Len < t.Start:
			return fmt.Errorf("%s: %d sectors from %d on are more than there can be", at, t.Len, t.Start)
		case strings.ContainsRune(t.Params, 0):
			return fmt.Errorf("%s: its parameters have a NUL", at)
		}
		end = t.Start + t.Len
	}
	return nil
}

// encodeTable writes a table as the kernel reads it.
func encodeTable(table []Target) []byte {
	var data []byte
	for _, t := range table {
		size := align(specSize + len(t.Params) + 1)
		spec := targetSpec{Start: t.Start, Len: t.Len, Next: uint32(size)}
		copy(spec.Type[:], t.Type)
		one := make([]byte, size)
		put(one, &spec)
		copy(one[specSize:], t.Params)
		data = append(data, one...)
	}
	return data
}

// Clear drops the table in the inactive slot, if there is one.
func (c *Control) Clear(name string) (Info, error) {
	r, err := onDevice("clear inactive table of", cmdTableClear, name)
	if err != nil {
		return Info{}, err
	}
	return c.runInfo(r)
}

// Table returns the active table, nil when there is none.
func (c *Control) Table(name string) ([]Target, Info, error) {
	return c.targets("read table of", name, flagStatusTable)
}

// InactiveTable returns the table that Resume would make active, nil when there is
// none. Info's counts and ReadOnly are those of that table.
func (c *Control) InactiveTable(name string) ([]Target, Info, error) {
	return c.targets("read inactive table of", name, flagStatusTable|flagQueryInactive)
}

// StatusOptions say how to read a status. The zero value does what dmsetup does.
type StatusOptions struct {
	NoFlush bool // thin and cache: do not commit first, so that the status may be stale
}

// Status returns the status of each target of the active table, in its Params. The call
// waits for the target to answer: era does not answer while it is suspended.
func (c *Control) Status(name string, o StatusOptions) ([]Target, Info, error) {
	flags := uint32(0)
	if o.NoFlush {
		flags = flagNoFlush
	}
	return c.targets("read status of", name, flags)
}

func (c *Control) targets(op, name string, flags uint32) ([]Target, Info, error) {
	r, err := onDevice(op, cmdTableStatus, name)
	if err != nil {
		return nil, Info{}, err
	}
	r.flags = flags
	got, err := c.run(r)
	if err != nil {
		return nil, Info{}, err
	}
	info, ierr := got.info()
	data, derr := got.data()
	table, terr := parseTargets(data, got.TargetCount)
	if err := errors.Join(ierr, derr, terr); err != nil {
		return nil, Info{}, fmt.Errorf("dm: %s: %w", r.what(), err)
	}
	return table, info, nil
}

// Deps returns the devices that the active table uses, each once, in the kernel's
// order.
func (c *Control) Deps(name string) ([]sysfs.Dev, error) {
	r, err := onDevice("list devices below", cmdTableDeps, name)
	if err != nil {
		return nil, err
	}
	got, err := c.run(r)
	if err != nil {
		return nil, err
	}
	data, err := got.data()
	if err == nil {
		var deps []sysfs.Dev
		if deps, err = parseDeps(data); err == nil {
			return deps, nil
		}
	}
	return nil, fmt.Errorf("dm: %s: %w", r.what(), err)
}

// Message sends a message to the target at a sector of a device, or to device-mapper
// itself when it starts with "@", and returns the answer, "" for most.
func (c *Control) Message(name string, sector uint64, message string) (string, error) {
	op := fmt.Sprintf("send %q to", message)
	r, err := onDevice(op, cmdTargetMessage, name)
	if err != nil {
		return "", err
	}
	if strings.ContainsRune(message, 0) {
		return "", fmt.Errorf("dm: %s: a message cannot have a NUL", r.what())
	}
	r.data = make([]byte, messageHeadSize+len(message)+1)
	put(r.data, &messageHead{sector})
	copy(r.data[messageHeadSize:], message)
	r.size = messageBuffer
	got, err := c.run(r)
	if err != nil {
		return "", c.messageFailed(name, sector, err)
	}
	if got.Flags&flagDataOut == 0 {
		return "", nil
	}
	data, err := got.data()
	if err != nil {
		return "", fmt.Errorf("dm: %s: %w", r.what(), err)
	}
	answer, ok := text(data)
	if !ok {
		return "", fmt.Errorf("dm: %s: %w: the answer has no end", r.what(), errReply)
	}
	return answer, nil
}

// messageFailed names the target that refused a message.
func (c *Control) messageFailed(name string, sector uint64, err error) error {
	table, _, terr := c.Table(name)
	if terr != nil {
		return err
	}
	for i, t := range table {
		if sector >= t.Start && sector-t.Start < t.Len {
			return fmt.Errorf("%w: target %d (%s)", err, i, t.Type)
		}
	}
	return fmt.Errorf("%w: no target at sector %d", err, sector)
}

// Targets returns the kinds of target that are loaded into the kernel. TargetVersion
// loads the module of a further one.
func (c *Control) Targets() ([]TargetType, error) {
	r, err := c.run(&request{op: "list target types", cmd: cmdListVersions})
	if err != nil {
		return nil, err
	}
	data, err := r.data()
	if err == nil {
		var all []TargetType
		if all, err = parseVersions(data); err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("dm: list target types: %w", err)
}

// TargetVersion returns the version of a target, whose module the kernel loads if
// need be. The error wraps ErrNotSupported when the kernel has no such target.
func (c *Control) TargetVersion(kind string) (Version, error) {
	op := fmt.Sprintf("find target %q", kind)
	if kind == "" || len(kind) >= typeLen || strings.ContainsRune(kind, 0) {
		return Version{}, fmt.Errorf("dm: %s: not a type of target", op)
	}
	r, err := c.run(&request{op: op, cmd: cmdTargetVersion, kernel: kind})
	if errors.Is(err, unix.EINVAL) {
		return Version{}, fmt.Errorf("dm: %s: %w (modprobe dm-%s)", op, ErrNotSupported, kind)
	}
	if err != nil {
		return Version{}, err
	}
	data, err := r.data()
	if err != nil {
		return Version{}, fmt.Errorf("dm: %s: %w", op, err)
	}
	all, err := parseVersions(data)
	if err == nil && (len(all) != 1 || all[0].Name != kind) {
		err = fmt.Errorf("%w: got %v", errReply, all)
	}
	if err != nil {
		return Version{}, fmt.Errorf("dm: %s: %w", op, err)
	}
	return all[0].Version, nil
}
