// Package state is the format of the file that says what is known of a mirror between
// two runs.
//
// For most uses, Decode reads the bytes of such a file and State.Encode makes them. A
// state is one line of JSON (see State), and a second line that holds "blake3:" and the
// first 16 bytes of the BLAKE3 hash of the first line, its newline included, in
// hexadecimal.
//
// The package opens no file. It refuses a state that is damaged, that is not of this
// format, or that a newer tidemark wrote, each with an error of its own. Nothing in it is
// safe for concurrent use.
package state

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strings"
	"time"

	"github.com/zeebo/blake3"
)

var (
	// ErrNotOurs says that the bytes are not of this format at all.
	ErrNotOurs = errors.New("not the state of a mirror")
	// ErrDamaged says that the bytes were of this format once.
	ErrDamaged = errors.New("what is known of the mirror is damaged")
	// ErrNewer says that a newer tidemark wrote the bytes.
	ErrNewer = errors.New("a newer tidemark wrote the state of the mirror")
)

const version = 1

// Max bounds an encoded state, in bytes.
const Max = 1 << 20

// MinBlock and MaxBlock bound the block size in bytes.
const (
	MinBlock = 4096
	MaxBlock = 16 << 20
)

// ID names one mirror, so that the journal or the checksums of another are not taken for
// its own.
type ID [16]byte

// MaxRuns is how many runs the history of a state keeps.
const MaxRuns = 100

// State is what is known of a mirror between runs.
type State struct {
	Version   int    `json:"version"`
	ID        ID     `json:"-"`
	IDText    string `json:"id"`         // ID in hexadecimal
	Update    uint64 `json:"update"`     // counts the updates
	Size      int64  `json:"size"`       // bytes mirrored
	BlockSize int64  `json:"block_size"` // bytes each checksum stands for

	// Complete says that the target equals the source at the moment of Mark. It
	// is false until the first copy has ended: then the blocks before Copied
	// have been copied at Mark or later, and Foreign says that the target held
	// something before, so that the rest may hold anything.
	Complete bool  `json:"complete"`
	Copied   int64 `json:"copied,omitempty"`
	Foreign  bool  `json:"foreign,omitempty"`

	Source Source    `json:"source"`
	Target Target    `json:"target"`
	Mark   string    `json:"mark,omitempty"` // of the tracker; "" where none can vouch
	Time   time.Time `json:"time,omitzero"`  // of Mark
	Runs   []Run     `json:"runs,omitempty"` // the newest last

	// Verified is when the target was last found to be what its checksums say; zero
	// where it never was. Damage is what was found instead since, and has not been
	// repaired: nil where nothing was. An older tidemark knows neither, and drops them.
	Verified time.Time `json:"verified,omitzero"`
	Damage   *Damage   `json:"damage,omitempty"`
}

// Damage is what a check of a target found.
type Damage struct {
	Time  time.Time `json:"time"`
	Bytes int64     `json:"bytes"` // that are not what they should be
}

// Source tells whose copy a mirror is.
type Source struct {
	Path   string `json:"path"`
	Stable string `json:"stable,omitempty"` // names the medium whatever its path; see block.Identity
	Start  int64  `json:"start,omitempty"`  // bytes, of a partition on its disk
}

// Target is how the target looked when a run last wrote to it: what differs now was done
// by somebody else. An older tidemark wrote no kind, and of a file only size and mtime.
type Target struct {
	Kind string `json:"kind,omitempty"` // "image" or "device"
	Size int64  `json:"size"`           // bytes of the file or device
	// Of a file: times in nanoseconds since 1970, 0 where they are not known.
	MTime int64  `json:"mtime,omitempty"`
	CTime int64  `json:"ctime,omitempty"`
	BTime int64  `json:"btime,omitempty"`
	Inode uint64 `json:"inode,omitempty"`
	// Of a device: the boot, the disk sequence number, and the count of sectors
	// written that the kernel shows.
	BootID  string `json:"boot_id,omitempty"`
	DiskSeq uint64 `json:"disk_seq,omitempty"`
	Written uint64 `json:"written,omitempty"`
}

// Run is one line of a mirror's history.
type Run struct {
	Time     time.Time `json:"time"`
	Tracker  string    `json:"tracker"`
	View     string    `json:"view"`
	Changed  int64     `json:"bytes_changed"`
	Read     int64     `json:"bytes_read"`
	Written  int64     `json:"bytes_written"`
	FrozenMS float64   `json:"frozen_ms"`
	TookMS   float64   `json:"duration_ms"`
	Outcome  string    `json:"outcome"`
}

// maxOutcome bounds what a run's outcome may take, in bytes: a hook may have said much, and
// JSON may take six bytes for one. MaxRuns of them leave the state below Max.
const maxOutcome = 1 << 10

// AddRun appends r to the history and drops what is older than MaxRuns runs.
func (s *State) AddRun(r Run) {
	r.Outcome = strings.ToValidUTF8(r.Outcome[:min(len(r.Outcome), maxOutcome)], "")
	s.Runs = append(s.Runs[:len(s.Runs):len(s.Runs)], r)
	if n := len(s.Runs); n > MaxRuns {
		s.Runs = s.Runs[n-MaxRuns:]
	}
}

// seal returns the second line of a state.
func seal(line []byte) []byte {
	sum := blake3.Sum256(line)
	return fmt.Appendf(nil, "blake3:%x\n", sum[:16])
}

// Encode returns the bytes of the state.
func (s State) Encode() ([]byte, error) {
	s.Version = version
	s.IDText = hex.EncodeToString(s.ID[:])
	line, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	line = append(line, '\n')
	return append(line, seal(line)...), nil
}

// Read decodes what r holds from its start.
func Read(r io.ReaderAt) (State, error) {
	b, err := io.ReadAll(io.NewSectionReader(r, 0, Max+1))
	if err != nil {
		return State{}, fmt.Errorf("state: %w", err)
	}
	return Decode(b)
}

// Decode parses the bytes of a state. The error wraps ErrNotOurs,
// ErrDamaged or ErrNewer.
func Decode(b []byte) (State, error) {
	if len(b) > Max {
		return State{}, fmt.Errorf("state: %d bytes: at most %d: %w", len(b), Max, ErrNotOurs)
	}
	end := bytes.IndexByte(b, '\n') + 1
	if end == 0 || b[0] != '{' {
		return State{}, fmt.Errorf("state: no line of JSON: %w", ErrNotOurs)
	}
	if want := seal(b[:end]); !bytes.Equal(b[end:], want) {
		return State{}, fmt.Errorf("state: checksum %q, want %q: %w", b[end:], want, ErrDamaged)
	}
	var s State
	if err := json.Unmarshal(b[:end], &s); err != nil {
		return State{}, fmt.Errorf("state: %w: %w", ErrDamaged, err)
	}
	if s.Version > version {
		return State{}, fmt.Errorf("state: version %d: %w", s.Version, ErrNewer)
	}
	if err := s.check(); err != nil {
		return State{}, fmt.Errorf("state: %w", err)
	}
	return s, nil
}

func (s *State) check() error {
	id, err := hex.DecodeString(s.IDText)
	if err != nil || len(id) != len(s.ID) {
		return fmt.Errorf("id %q: %w", s.IDText, ErrDamaged)
	}
	s.ID = ID(id)
	if s.BlockSize < MinBlock || s.BlockSize > MaxBlock || bits.OnesCount64(uint64(s.BlockSize)) != 1 {
		return fmt.Errorf("block size %d: want a power of two from %d to %d: %w", s.BlockSize, MinBlock, MaxBlock, ErrDamaged)
	}
	if s.Size < 0 || s.Copied < 0 || s.Copied > s.Size {
		return fmt.Errorf("size %d, copied %d: %w", s.Size, s.Copied, ErrDamaged)
	}
	if len(s.Runs) > MaxRuns {
		return fmt.Errorf("%d runs: at most %d: %w", len(s.Runs), MaxRuns, ErrDamaged)
	}
	return nil
}
