package lvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"tidemark/linux/dm"
)

// Volume is a logical volume, as lvs reports it.
type Volume struct {
	VG, Name       string   // the name of a hidden volume is without the brackets
	VGUUID, UUID   string   // as LVM writes them, with dashes
	Seqno          int64    // of the group's metadata: grows with each change
	Size           int64    // bytes
	Layout, Role   []string // "thin", "sparse"; "public", "snapshot", "thicksnapshot"
	Tags           []string
	Path           string // "/dev/VG/LV"; "" for a hidden volume
	Origin         string // what it is a snapshot of, in the same group; "": none, or removed
	Pool           string // of a thin volume, in the same group
	DataLV         string // of a pool: the hidden volumes that it consists of
	MetadataLV     string
	ThinID         uint32 // of a thin volume, in its pool
	ChunkSize      int64  // bytes, of a pool or a snapshot with a store; else 0
	Active, Open   bool
	ReadOnly       bool // by what LVM's metadata says, or the kernel
	Suspended      bool
	SkipActivation bool // is left alone by vgchange --activate y
	Merging        bool // of a snapshot, or an origin: LVM merges it, or will when it is next activated
	MergeFailed    bool
	Invalid        bool // of a snapshot with a store: it was overflowed
}

// FullName returns "VG/LV".
func (v Volume) FullName() string { return v.VG + "/" + v.Name }

// Device returns the name of the volume's device in device-mapper, in which the hyphens of both
// names are twice.
func (v Volume) Device() string {
	return strings.ReplaceAll(v.VG, "-", "--") + "-" + strings.ReplaceAll(v.Name, "-", "--")
}

// Thin reports whether v is a thin volume; its pool is not.
func (v Volume) Thin() bool { return v.Pool != "" && slices.Contains(v.Layout, "thin") }

// IsPool reports whether v is a thin pool.
func (v Volume) IsPool() bool {
	return slices.Contains(v.Layout, "pool") && slices.Contains(v.Layout, "thin")
}

// Snapshot reports whether v is a snapshot with a store of its own ("thick").
func (v Volume) Snapshot() bool { return slices.Contains(v.Role, "thicksnapshot") }

// DMUUID returns the UUID of the volume's device in device-mapper. layer is "" for the
// device that users have, or what LVM calls one below it: "real", "cow", "tpool".
func (v Volume) DMUUID(layer string) string {
	id := dmPrefix + strings.ReplaceAll(v.VGUUID+v.UUID, "-", "")
	if layer != "" {
		id += "-" + layer
	}
	return id
}

// dmPrefix starts the device-mapper UUIDs of LVM's devices.
const dmPrefix = "LVM-"

// Find returns the volume that name means: "VG/LV", or the path of its device, as "/dev/VG/LV"
// also of one that is not active. The error wraps ErrNotFound when LVM knows none.
func Find(ctx context.Context, name string) (Volume, error) {
	if strings.HasPrefix(name, "/") {
		if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			return ofDevice(ctx, name)
		}
		name = strings.TrimPrefix(name, "/dev/")
	}
	vg, lv, ok := strings.Cut(name, "/")
	if !ok || vg == "" || lv == "" || strings.Contains(lv, "/") || strings.HasPrefix(name, "-") {
		return Volume{}, fmt.Errorf("lvm: %q: want VG/LV, or the path of its device", name)
	}
	all, err := List(ctx, vg)
	if err != nil {
		return Volume{}, err
	}
	for _, v := range all {
		if v.Name == lv {
			return v, nil
		}
	}
	return Volume{}, fmt.Errorf("lvm: %s: %w", name, ErrNotFound)
}

// ofDevice returns the volume whose device is at path.
func ofDevice(ctx context.Context, path string) (Volume, error) {
	ctl, err := dm.Open()
	if err != nil {
		return Volume{}, err
	}
	defer ctl.Close()
	info, err := ctl.Resolve(path)
	if err != nil && !errors.Is(err, dm.ErrNotFound) {
		return Volume{}, err
	}
	if err != nil || !strings.HasPrefix(info.UUID, dmPrefix) {
		return Volume{}, fmt.Errorf("lvm: %s: %w: the device is not LVM's", path, ErrNotFound)
	}
	all, err := List(ctx, "")
	if err != nil {
		return Volume{}, err
	}
	for _, v := range all {
		if v.DMUUID("") == info.UUID {
			return v, nil
		}
	}
	return Volume{}, fmt.Errorf("lvm: %s: %w: LVM does not list %s", path, ErrNotFound, info.UUID)
}

// List returns all volumes of a volume group, hidden ones too; of all groups when vg is "".
func List(ctx context.Context, vg string) ([]Volume, error) {
	args := []string{
		"--all", "--reportformat", "json", "--units", "b", "--nosuffix", "--binary",
		"--options", strings.Join(fields, ","),
	}
	if vg != "" {
		args = append(args, "--", vg)
	}
	out, err := run(ctx, "lvs", args...)
	if err != nil {
		return nil, err
	}
	return parse(out)
}

// fields are what is asked of each volume. segtype, thin_id and chunk_size are of its
// segments, and make lvs list one line for each of them.
var fields = []string{
	"vg_name", "vg_uuid", "vg_seqno", "lv_name", "lv_uuid", "lv_size", "lv_layout", "lv_role", "lv_tags", "lv_path",
	"origin", "pool_lv", "data_lv", "metadata_lv", "lv_active_locally", "lv_device_open", "lv_permissions", "lv_suspended",
	"lv_skip_activation", "lv_merging", "lv_merge_failed", "lv_snapshot_invalid",
	"thin_id", "chunk_size",
}

// parse reads lvs's report.
func parse(out []byte) ([]Volume, error) {
	var all struct {
		Report []struct {
			LV []map[string]string `json:"lv"`
			// lvs names the lines after segments when one of the fields is a segment's.
			Seg []map[string]string `json:"seg"`
		} `json:"report"`
	}
	if err := json.Unmarshal(out, &all); err != nil {
		return nil, fmt.Errorf("lvm: lvs: a report that is not understood: %w", err)
	}
	if all.Report == nil {
		return nil, errors.New("lvm: lvs: a report that is not understood: it has no \"report\"")
	}
	var found []Volume
	for _, r := range all.Report {
		for _, row := range slices.Concat(r.LV, r.Seg) {
			v, err := parseRow(row)
			if err != nil {
				return nil, fmt.Errorf("lvm: lvs: %s/%s: a report that is not understood: %w", row["vg_name"], row["lv_name"], err)
			}
			if n := len(found); n > 0 && found[n-1].UUID == v.UUID && found[n-1].VGUUID == v.VGUUID {
				continue // another segment
			}
			found = append(found, v)
		}
	}
	return found, nil
}

// row reads the fields of one line, and keeps the first error.
type row struct {
	fields map[string]string
	err    error
}

func parseRow(m map[string]string) (Volume, error) {
	r := &row{fields: m}
	v := Volume{
		VG: r.must("vg_name"), VGUUID: r.must("vg_uuid"), UUID: r.must("lv_uuid"),
		Name:   strings.TrimSuffix(strings.TrimPrefix(r.must("lv_name"), "["), "]"),
		Seqno:  r.number("vg_seqno", 32),
		Size:   r.number("lv_size", 63),
		Layout: r.list("lv_layout"), Role: r.list("lv_role"), Tags: r.list("lv_tags"),
		Path: r.text("lv_path"), Origin: r.hidden("origin"), Pool: r.hidden("pool_lv"),
		DataLV: r.hidden("data_lv"), MetadataLV: r.hidden("metadata_lv"),
		ThinID: uint32(r.number("thin_id", 24)), ChunkSize: r.number("chunk_size", 62),
		Active: r.yes("lv_active_locally"), Open: r.yes("lv_device_open"), Suspended: r.yes("lv_suspended"),
		ReadOnly:       strings.HasPrefix(r.text("lv_permissions"), "read-only"), // or writeable, or unknown
		SkipActivation: r.yes("lv_skip_activation"),
		Merging:        r.yes("lv_merging"), MergeFailed: r.yes("lv_merge_failed"), Invalid: r.yes("lv_snapshot_invalid"),
	}
	return v, r.err
}

func (r *row) fail(field, value string) {
	if r.err == nil {
		r.err = fmt.Errorf("%s is %q", field, value)
	}
}

// text is a field that may be empty, but not missing.
func (r *row) text(field string) string {
	s, ok := r.fields[field]
	if !ok && r.err == nil {
		r.err = fmt.Errorf("%s is missing", field)
	}
	return s
}

func (r *row) must(field string) string {
	s := r.text(field)
	if s == "" {
		r.fail(field, s)
	}
	return s
}

// hidden is the name of a volume that may be hidden, which lvs shows in brackets.
func (r *row) hidden(field string) string {
	return strings.TrimSuffix(strings.TrimPrefix(r.text(field), "["), "]")
}

func (r *row) list(field string) []string {
	s := r.text(field)
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// number is a field that is empty for 0.
func (r *row) number(field string, bits int) int64 {
	s := r.text(field)
	if s == "" {
		return 0
	}
	n, err := strconv.ParseUint(s, 10, bits)
	if err != nil {
		r.fail(field, s)
	}
	return int64(n)
}

// yes is a field of "1", "0", or "-1" and "" where LVM cannot tell, as for a volume that is not
// active.
func (r *row) yes(field string) bool {
	switch s := r.text(field); s {
	case "1":
		return true
	case "0", "-1", "":
	default:
		r.fail(field, s)
	}
	return false
}
