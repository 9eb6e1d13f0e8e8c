package store

import (
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
)

// mode is how objects are locked: nobody can shorten it, also who owns the bucket. In the other mode,
// governance, whoever has the keys of an administrator can, and these are what is stolen.
const mode = minio.Compliance

// Lockable refuses a bucket that locks all that is put into it by itself, too: leases must go.
func (b *bucket) Lockable(ctx context.Context) error {
	state, byDefault, _, _, err := b.core.Client.GetObjectLockConfig(ctx, b.bucket)
	said := minio.ToErrorResponse(err)
	switch {
	case said.Code == "ObjectLockConfigurationNotFoundError" || said.StatusCode == http.StatusNotImplemented || err == nil && state != "Enabled":
		return fmt.Errorf("store: %s: %w: the bucket has no object lock, which must be given when it is made", b, ErrNoLock)
	case err != nil:
		return b.fault("look at", "the object lock", err)
	case byDefault != nil && *byDefault != "":
		return fmt.Errorf("store: %s: %w: the bucket locks all objects by default, also those that must go: take its default retention away", b, ErrNoLock)
	}
	return nil
}

func (b *bucket) LockFor(keep func(name string) time.Duration) error {
	b.keep = keep
	return nil
}

// lockPut locks an object that is about to be put. The time is this machine's: S3 refuses requests
// of one whose clock is wrong by more than 15 minutes. S3 wants the checksum.
func (b *bucket) lockPut(name string, o *minio.PutObjectOptions) {
	if b.keep == nil || b.keep(name) == 0 {
		return
	}
	o.Mode, o.RetainUntilDate, o.SendContentMd5 = mode, wholeSecond(time.Now().Add(b.keep(name))), true
}

// wholeSecond is a time that S3 can write, and not before t.
func wholeSecond(t time.Time) time.Time {
	return t.Add(time.Second - 1).Truncate(time.Second).UTC()
}

func (b *bucket) Lock(ctx context.Context, name string, until time.Time) (time.Time, error) {
	if err := checkName(name); err != nil {
		return time.Time{}, err
	}
	how, until := mode, wholeSecond(until)
	err := b.core.Client.PutObjectRetention(ctx, b.bucket, b.prefix+name, minio.PutObjectRetentionOptions{Mode: &how, RetainUntilDate: &until})
	if err == nil {
		return until, nil
	}
	// It is refused when it ends later already: another machine may have locked it.
	if end, unknown := b.Locked(ctx, name); unknown == nil && !end.Before(until) {
		return end, nil
	}
	if minio.ToErrorResponse(err).Code == minio.MethodNotAllowed {
		err = fmt.Errorf("somebody has removed it, which hides it alone: \"tidemark vault repair --undelete\" brings it back: %w", err)
	}
	return time.Time{}, b.fault("lock", name, err)
}

func (b *bucket) Locked(ctx context.Context, name string) (time.Time, error) {
	if err := checkName(name); err != nil {
		return time.Time{}, err
	}
	_, end, err := b.version(ctx, name)
	if err != nil {
		return time.Time{}, b.fault("look at", name, err)
	}
	return end, nil
}

// version returns the newest version of an object, and until when it is locked.
func (b *bucket) version(ctx context.Context, name string) (id string, end time.Time, err error) {
	info, err := b.core.Client.StatObject(ctx, b.bucket, b.prefix+name, minio.StatObjectOptions{})
	if err != nil {
		return "", end, err
	}
	if text := info.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date"); text != "" {
		end, err = time.Parse(time.RFC3339, text)
	}
	return cmp.Or(info.VersionID, "null"), end, err
}

// removeVersion removes the newest version of an object: without its id it would be hidden, and kept. Where
// somebody has put another one over it the first one is there again.
func (b *bucket) removeVersion(ctx context.Context, name string) error {
	id, end, err := b.version(ctx, name)
	switch {
	case minio.ToErrorResponse(err).Code == minio.NoSuchKey:
		return nil
	case err == nil && end.After(time.Now()):
		err = &LockedError{name, end}
	case err == nil:
		err = b.core.Client.RemoveObject(ctx, b.bucket, b.prefix+name, minio.RemoveObjectOptions{VersionID: id})
	}
	if err != nil {
		return b.fault("remove", name, err)
	}
	return nil
}

// Undelete brings back what somebody has removed from a bucket, or put others over, though it was
// locked: that hides it alone. The first version of an object is the right one, as objects are written
// once; it is so of those that were locked when they were put, and others are left as they are. It
// returns how many were brought back, or would be in a dry run.
func Undelete(ctx context.Context, s Store, dryRun bool) (n int, err error) {
	b, ok := s.(*bucket)
	if !ok {
		return 0, fmt.Errorf("store: %s: only a bucket of S3 keeps what was removed", s)
	}
	type versions struct {
		first  string
		others []string
	}
	all := map[string]versions{}
	for o := range b.core.ListObjectsIter(ctx, b.bucket, minio.ListObjectsOptions{Prefix: b.prefix, Recursive: true, WithVersions: true}) {
		if o.Err != nil {
			return 0, b.fault("list", "versions", o.Err)
		}
		v := all[o.Key]
		switch { // those of one name come the newest first
		case o.IsDeleteMarker:
			v.others = append(v.others, o.VersionID)
		case v.first != "":
			v.others = append(v.others, v.first)
			fallthrough
		default:
			v.first = o.VersionID
		}
		all[o.Key] = v
	}
	for key, v := range all {
		if v.first == "" || len(v.others) == 0 {
			continue
		}
		name := strings.TrimPrefix(key, b.prefix)
		_, _, err := b.core.Client.GetObjectRetention(ctx, b.bucket, key, v.first)
		if minio.ToErrorResponse(err).Code == "NoSuchObjectLockConfiguration" {
			continue // it was never locked
		} else if err != nil && !errors.As(err, new(xml.UnmarshalError)) { // versitygw gives the answer another name
			return n, b.fault("look at", name, err)
		}
		for _, id := range v.others {
			if dryRun {
				break
			}
			if err := b.core.Client.RemoveObject(ctx, b.bucket, key, minio.RemoveObjectOptions{VersionID: id}); err != nil {
				return n, b.fault("bring back", name, err)
			}
		}
		n++
	}
	return n, nil
}
