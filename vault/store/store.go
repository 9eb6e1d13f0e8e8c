// Package store is where the objects of a vault lie: a folder, a folder behind SFTP, or a bucket
// of S3.
//
// For most uses, Open makes a Store of an address. An object is bytes with a name, written
// once: Put is whole or not there, also when the power is cut in the middle, and never
// replaces what exists. Names are parts of letters, digits, dots and dashes with
// slashes between, and what begins with "tmp/" is of the store itself, left by those that died.
//
// The package knows nothing of what the objects hold, and retries nothing but in Retry. A Store may
// be used by several goroutines, and by several processes, at once.
package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"
)

// TempPrefix begins the names of what is not an object yet. Nobody needs it once nobody
// writes it any more.
const TempPrefix = "tmp/"

var (
	// ErrExists says that an object of that name, with other bytes, is there.
	ErrExists = errors.New("the object exists")
	// ErrNotExist says that there is no object of that name.
	ErrNotExist = errors.New("there is no such object")
	// ErrLost says that the store did not answer, or no more: later it may. What was asked
	// for may have been done.
	ErrLost = errors.New("the connection to the store was lost")
	// ErrUnreadable says that the disk below the store cannot read an object, or that part of it.
	ErrUnreadable = errors.New("the disk below the store cannot read it")
	// ErrNoLock says that a store cannot lock objects.
	ErrNoLock = errors.New("no objects can be locked there")
	// ErrLocked says that nobody can remove an object yet.
	ErrLocked = errors.New("the object is locked")
)

// LockedError says until when nobody can remove an object. It wraps ErrLocked.
type LockedError struct {
	Name  string // of the object
	Until time.Time
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("%s is locked until %s", e.Name, e.Until.UTC().Format(time.RFC3339))
}

// Unwrap returns ErrLocked.
func (e *LockedError) Unwrap() error { return ErrLocked }

// Info is what a store knows of an object.
type Info struct {
	Name string
	Size int64     // bytes
	Time time.Time // when it was written, by the clock of the store
}

// Store keeps objects.
type Store interface {
	// Put stores an object. Once it has returned nil the object survives a power cut. It is
	// no error when the object is there with the same bytes: an earlier try may have succeeded.
	// Otherwise the error wraps ErrExists, and what is there stays. It does not keep data.
	Put(ctx context.Context, name string, data []byte) error
	// Get returns n bytes of an object from off on, or fewer where it ends. They lie in room where
	// that has a capacity of n; nil will do. After an error room may hold anything. The error wraps
	// ErrNotExist or ErrUnreadable.
	Get(ctx context.Context, name string, off, n int64, room []byte) ([]byte, error)
	// List calls each for the objects whose names begin with prefix, in any order, until it
	// returns an error. An object is among them once Put has returned nil, until Remove has.
	List(ctx context.Context, prefix string, each func(Info) error) error
	// Remove removes an object. It is no error when there is none. The error of one that is locked
	// is a *LockedError, where LockFor was called.
	Remove(ctx context.Context, name string) error
	// Lockable tells why objects cannot be locked, with an error that wraps ErrNoLock, or why that
	// could not be told; nil: they can.
	Lockable(ctx context.Context) error
	// LockFor has each object be locked when it is put, for the time that keep returns for its name, and
	// not at all where that is 0. It is called before others use the store. The error wraps ErrNoLock.
	LockFor(keep func(name string) time.Duration) error
	// Lock has nobody, whoever it is, remove an object until then. It returns until when that is so
	// now: later, where it was. The error wraps ErrNotExist or ErrNoLock.
	Lock(ctx context.Context, name string, until time.Time) (time.Time, error)
	// Locked returns until when an object is locked, or was; the zero time stands for never. The
	// error wraps ErrNotExist.
	Locked(ctx context.Context, name string) (time.Time, error)
	// Close lets go of what the store holds.
	Close() error
	// String returns the address of the store, without what is secret.
	String() string
}

// Options say how a store is reached. The zero value will do for most.
type Options struct {
	// Endpoint is the address of an S3 server, such as https://s3.example.com:9000; "": that
	// of Amazon.
	Endpoint string
}

// Open returns the store at an address: the path of a folder, sftp://[user@]host[:port]/path,
// or s3://bucket/prefix. It does not tell whether there is a vault.
func Open(ctx context.Context, address string, o Options) (Store, error) {
	if o.Endpoint != "" && !strings.HasPrefix(address, "s3://") {
		return nil, fmt.Errorf("store: %s: only S3 has an endpoint", address)
	}
	scheme, _, ok := strings.Cut(address, "://")
	if !ok {
		return openFolder(address)
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	switch scheme {
	case "sftp":
		return openSFTP(ctx, u)
	case "s3":
		return openS3(u, o)
	}
	return nil, fmt.Errorf("store: %s: want the path of a folder, sftp://host/path or s3://bucket/prefix", address)
}

func openFolder(path string) (Store, error) {
	if path == "" {
		return nil, errors.New("store: no path")
	}
	root, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return OnFiles(root, Local(root)), nil
}

// same turns an error that wraps ErrExists into nil when the object has these bytes.
func same(ctx context.Context, s Store, name string, data []byte, fault error) error {
	if !errors.Is(fault, ErrExists) {
		return fault
	}
	there, err := s.Get(ctx, name, 0, int64(len(data))+1, nil)
	switch {
	case err != nil:
		return errors.Join(fault, err)
	case !bytes.Equal(there, data):
		return fault
	}
	return nil
}

// checkName refuses what could lead out of a store.
func checkName(name string) error {
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("store: %q is no name of an object", name)
		}
	}
	for _, r := range name {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-/", r) {
			return fmt.Errorf("store: %q is no name of an object", name)
		}
	}
	return nil
}
