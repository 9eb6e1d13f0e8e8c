package era

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/zeebo/blake3"

	"tidemark/linux/atomicfile"
	"tidemark/linux/dmera"
	"tidemark/track"
	"tidemark/track/history"
)

const lineageVersion = 1

// A lineage is the history of one piece of metadata on one data device, for as long
// as it can be vouched to be without a gap. Its id is in the marks.
//
// While a device is active the kernel has its metadata in hand, and nothing can come in
// between. Over an activation it can; therefore what is there is compared with what was
// remembered: the identity that tidemark writes into metadata that it makes, the names of
// the devices, the era counter, which never goes back, and witnesses. A witness is a block
// whose last era was noted when the counter was at Era: since then it was written again,
// or its era is the same, and so are its first bytes on the source. Metadata made anew,
// put back from a copy, or belonging to another device has other eras; a source whose
// content was replaced behind the era device's back has other bytes. A few writes past
// the device are seen with luck only: a program that sees them calls dmera.NotePast.
type lineage struct {
	Version   int       `json:"version"`
	ID        string    `json:"id"`
	Since     time.Time `json:"since"`
	Before    string    `json:"before"` // why earlier marks are lost
	Identity  string    `json:"identity,omitempty"`
	Newest    uint64    `json:"newest"` // era that was seen
	Era       uint64    `json:"era"`    // that began when the witnesses were noted
	Witnesses []witness `json:"witnesses"`
	Facts     facts     `json:"device"`
}

// activation is one life of an era device in the kernel.
type activation struct {
	Boot    string `json:"boot"`
	DiskSeq uint64 `json:"diskseq"` // 0 before Linux 5.15: nothing is known
	Number  string `json:"number"`
}

// facts is what a device is at one moment.
type facts struct {
	Name       string     `json:"name"` // of device-mapper
	UUID       string     `json:"uuid,omitempty"`
	Activation activation `json:"activation"`
	Meta       string     `json:"meta"` // number, good for one boot
	Data       string     `json:"data"`
	MetaName   string     `json:"meta_name,omitempty"` // good for ever, where known
	DataName   string     `json:"data_name,omitempty"`
	Size       int64      `json:"size"`       // bytes
	BlockSize  int64      `json:"block_size"` // bytes
	Discards   uint64     `json:"discards"`   // since the activation

	takesDiscards bool
	noStatistics  bool
	free          uint64 // metadata blocks
	forgetful     bool   // the kernel may forget an era in a power cut
	gap           dmera.Gap
}

// key names the file of the device's lineage.
func (f facts) key() string {
	name := "name=" + f.Name
	if f.UUID != "" {
		name = "uuid=" + f.UUID
	}
	sum := blake3.Sum256([]byte(name))
	return hex.EncodeToString(sum[:8])
}

// stable leaves out what changes while a lineage goes on and tells nothing.
func (f facts) stable() facts {
	f.takesDiscards, f.noStatistics, f.free, f.forgetful, f.gap = false, false, 0, false, dmera.Gap{}
	return f
}

// spareMetadata is how many metadata blocks must be free before a snapshot is
// taken: a metadata device that fills up fails the writes to the
// device. Four writesets cover what one run puts away before the kernel digests it.
func (f facts) spareMetadata() uint64 {
	const bitsPerBlock = 509 * 64 // a block of a bitset
	bits := uint64((f.Size + f.BlockSize - 1) / f.BlockSize)
	return 4*(bits/bitsPerBlock+3) + 8
}

// fit refuses a device of which nothing could be vouched for, or that would be put
// at risk.
func (f facts) fit() error {
	switch {
	case f.takesDiscards:
		return ErrDiscards
	case f.noStatistics:
		return fmt.Errorf("%w: its statistics are off (queue/iostats), so that nobody counts discards", ErrUnfit)
	}
	return f.room()
}

// room refuses a metadata device that is nearly full.
func (f facts) room() error {
	if f.free < f.spareMetadata() {
		return fmt.Errorf("%w: %d free metadata blocks are left, %d are needed: writes to the device are about to fail", ErrUnfit, f.free, f.spareMetadata())
	}
	return nil
}

func loadLineage(stateDir, key string) (lineage, error) {
	var l lineage
	err := atomicfile.ReadJSON(lineagePath(stateDir, key), &l)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return lineage{Before: "nothing was remembered of this era device"}, nil
	case errors.Is(err, atomicfile.ErrDamaged) || err == nil && !l.valid():
		return lineage{Before: "what was remembered of this era device is damaged"}, nil
	case err != nil:
		return l, fmt.Errorf("track: %w", err)
	}
	return l, nil
}

func (l lineage) valid() bool {
	return history.IsID(l.ID) && l.Version == lineageVersion && l.Facts.Size > 0 && l.Facts.BlockSize > 0 && len(l.Witnesses) <= mostWitnesses
}

func lineagePath(stateDir, key string) string {
	return filepath.Join(stateDir, "era", key+".json")
}

// newLineage begins a lineage with the metadata in a snapshot.
func newLineage(ctx context.Context, now facts, s snapshot, why string) (lineage, error) {
	id, err := history.NewID()
	if err != nil {
		return lineage{}, err
	}
	l := lineage{
		Version: lineageVersion, ID: id, Since: time.Now().UTC(), Before: why,
		Identity: s.identity(), Newest: uint64(s.Era()), Facts: now.stable(),
	}
	ever, err := s.Changed(ctx, 1)
	if err != nil {
		return l, err
	}
	return l, l.renew(s, ever, nil) // without bytes: the device is in use
}

func (l lineage) began() string { return l.Since.Format(time.RFC3339) + " because " + l.Before }

// parted says in words why the device of now is not the lineage's, by what can be
// seen of it from outside; "" when it may be.
func (l lineage) parted(now facts) string {
	was := l.Facts
	renamed := func(a, b string) bool { return a != "" && b != "" && a != b }
	switch {
	case l.ID == "":
		return l.Before
	case was.Size != now.Size:
		return fmt.Sprintf("the era device was resized from %d to %d bytes", was.Size, now.Size)
	case was.BlockSize != now.BlockSize:
		return fmt.Sprintf("its blocks had %d bytes and have %d", was.BlockSize, now.BlockSize)
	case renamed(was.DataName, now.DataName):
		return fmt.Sprintf("its data was on %s and is on %s", was.DataName, now.DataName)
	case renamed(was.MetaName, now.MetaName):
		return fmt.Sprintf("its metadata was on %s and is on %s", was.MetaName, now.MetaName)
	case now.takesDiscards:
		return "the era device was made to take discards"
	case uint64(now.gap.End) > l.Newest:
		return fmt.Sprintf("the metadata does not tell all of what was before era %d: %v", now.gap.End, now.gap.Why)
	}
	discarded := now.Discards
	if l.continues(now) {
		if was.Meta != now.Meta || was.Data != now.Data {
			return fmt.Sprintf("its table was changed from metadata %s and data %s to %s and %s", was.Meta, was.Data, now.Meta, now.Data)
		}
		discarded -= was.Discards
	} else if now.forgetful {
		return "the device was activated again, and this kernel (before 5.12) may forget an era when the power is cut"
	}
	if discarded != 0 {
		return fmt.Sprintf("there were %d discards, of which dm-era remembers only the first block", discarded)
	}
	return ""
}

// continues reports whether the device was active all the time.
func (l lineage) continues(now facts) bool {
	return l.Facts.Activation == now.Activation && now.Activation.DiskSeq != 0
}

// save writes the lineage down so that it survives a power cut. One that has taken the
// place of the one that was known is left alone: our marks are lost then. The folder is
// locked meanwhile.
func (l lineage) save(ctx context.Context, stateDir, known string) error {
	path := lineagePath(stateDir, l.Facts.key())
	if err := atomicfile.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("track: %w", err)
	}
	unlock, err := history.Lock(ctx, filepath.Dir(path))
	if err != nil {
		return err
	}
	defer unlock()
	now, err := loadLineage(stateDir, l.Facts.key())
	if err != nil {
		return err
	}
	if now.ID != known && now.ID != l.ID && now.ID != "" {
		return track.Lost("another process has begun a new history of the device, because %s", now.Before)
	}
	if err := atomicfile.WriteJSON(path, atomicfile.Options{Mode: 0o600, Durable: true}, l); err != nil {
		return fmt.Errorf("track: %w", err)
	}
	return nil
}
