package sidecar

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

// MaxState bounds an encoded state, in bytes.
const MaxState = 1 << 20

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
	Time   time.Time `json:"time"`           // of Mark
	Runs   []Run     `json:"runs,omitempty"` // the newest last
}

// Source tells whose copy a mirror is.
type Source struct {
	Path   string `json:"path"`
	Stable string `json:"stable,omitempty"` // names the medium whatever its path; see block.Identity
	Start  int64  `json:"start,omitempty"`  // bytes, of a partition on its disk
}

// Target is how a target looked when we last wrote to it: what differs now was
// done by someone else.
type Target struct {
	Size  int64 `json:"size"`            // bytes of the file or device
	MTime int64 `json:"mtime,omitempty"` // of a file, nanoseconds
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

// AddRun appends r to the history and drops what is older than MaxRuns runs.
func (s *State) AddRun(r Run) {
	s.Runs = append(s.Runs[:len(s.Runs):len(s.Runs)], r)
	if n := len(s.Runs); n > MaxRuns {
		s.Runs = s.Runs[n-MaxRuns:]
	}
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
	return fmt.Appendf(line, "blake3:%x\n", checksum(line)), nil
}

// DecodeState parses the bytes of a state. The error wraps ErrNotOurs,
// ErrDamaged or ErrNewer.
func DecodeState(b []byte) (State, error) {
	if len(b) > MaxState {
		return State{}, fmt.Errorf("state: %d bytes: at most %d: %w", len(b), MaxState, ErrNotOurs)
	}
	end := bytes.IndexByte(b, '\n') + 1
	if end == 0 || b[0] != '{' {
		return State{}, fmt.Errorf("state: no line of JSON: %w", ErrNotOurs)
	}
	if want := fmt.Appendf(nil, "blake3:%x\n", checksum(b[:end])); !bytes.Equal(b[end:], want) {
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
	if s.BlockSize < 0 || s.BlockSize > MaxBlock {
		return fmt.Errorf("block size %d: %w", s.BlockSize, ErrDamaged)
	}
	if err := checkBlockSize(uint32(s.BlockSize)); err != nil {
		return err
	}
	if s.Size < 0 || s.Copied < 0 || s.Copied > s.Size {
		return fmt.Errorf("size %d, copied %d: %w", s.Size, s.Copied, ErrDamaged)
	}
	if len(s.Runs) > MaxRuns {
		return fmt.Errorf("%d runs: at most %d: %w", len(s.Runs), MaxRuns, ErrDamaged)
	}
	return nil
}
