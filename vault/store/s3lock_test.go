package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sys/unix"
)

// lockedBucket runs an S3 server with a bucket that has object lock, and returns a client of it, and
// what has a lock end: the server's note of when is set back.
func lockedBucket(t *testing.T) (c *minio.Client, endpoint string, endLock func(name string)) {
	t.Helper()
	endpoint, root, _ := s3ServerOver(t)
	at, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = minio.New(at.Host, &minio.Options{Creds: credentials.NewStaticV4("key", "secret", "")}); err != nil {
		t.Fatal(err)
	}
	if err := c.MakeBucket(t.Context(), "locked", minio.MakeBucketOptions{ObjectLocking: true}); err != nil {
		t.Fatal(err)
	}
	return c, endpoint, func(name string) {
		t.Helper()
		note, err := json.Marshal(map[string]any{"Mode": "COMPLIANCE", "RetainUntilDate": time.Now().Add(-time.Hour)})
		if err == nil {
			err = unix.Setxattr(filepath.Join(root, "locked/some/prefix", name), "user.object-retention", note, unix.XATTR_REPLACE)
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

func openLocked(t *testing.T, endpoint string) Store {
	t.Helper()
	s, err := Open(t.Context(), "s3://locked/some/prefix", Options{Endpoint: endpoint})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// versions lists all versions that a bucket has of an object, or of all.
func versions(t *testing.T, c *minio.Client, prefix string) (ids []string) {
	t.Helper()
	for o := range c.ListObjectsIter(t.Context(), "locked", minio.ListObjectsOptions{Prefix: prefix, Recursive: true, WithVersions: true}) {
		if o.Err != nil {
			t.Fatal(o.Err)
		}
		ids = append(ids, o.VersionID)
	}
	return ids
}

// A store that locks does all that others do, and what it removes is gone, not hidden.
func TestS3ThatLocks(t *testing.T) {
	c, endpoint, _ := lockedBucket(t)
	s := openLocked(t, endpoint)
	if err := s.LockFor(func(string) time.Duration { return 0 }); err != nil {
		t.Fatal(err)
	}
	conform(t, s)
	if left := versions(t, c, ""); len(left) != 0 {
		t.Errorf("%d versions are left", len(left))
	}
}

func TestNobodyRemovesWhatIsLocked(t *testing.T) {
	c, endpoint, endLock := lockedBucket(t)
	s := openLocked(t, endpoint)
	err := s.LockFor(func(name string) time.Duration {
		if strings.HasPrefix(name, "packs/") {
			return time.Hour
		}
		return 0
	})
	if err = errors.Join(err, s.Put(t.Context(), "packs/a", []byte("a")), s.Put(t.Context(), "leases/a", []byte("a"))); err != nil {
		t.Fatal(err)
	}
	if end, err := s.Locked(t.Context(), "leases/a"); err != nil || !end.IsZero() {
		t.Errorf("a lease is locked until %v, %v", end, err)
	}
	end, err := s.Locked(t.Context(), "packs/a")
	if left := time.Until(end); err != nil || left < 50*time.Minute || left > 70*time.Minute {
		t.Errorf("locked until %v, %v", end, err)
	}
	var locked *LockedError
	if err := s.Remove(t.Context(), "packs/a"); !errors.As(err, &locked) || !locked.Until.Equal(end) || errors.Is(err, ErrLost) {
		t.Errorf("removed: %v", err)
	}
	// a client that is the root of the server, and knows the version
	id := versions(t, c, "some/prefix/packs/a")[0]
	for _, bypass := range []bool{false, true} {
		if err := c.RemoveObject(t.Context(), "locked", "some/prefix/packs/a", minio.RemoveObjectOptions{VersionID: id, GovernanceBypass: bypass}); err == nil {
			t.Error("another client has removed it")
		}
	}
	// It can be made longer, and not shorter.
	longer := end.Add(time.Hour)
	if got, err := s.Lock(t.Context(), "packs/a", longer); err != nil || !got.Equal(longer) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := s.Lock(t.Context(), "packs/a", end); err != nil || !got.Equal(longer) {
		t.Errorf("it became shorter: %v, %v", got, err)
	}
	if _, err := s.Lock(t.Context(), "packs/b", longer); !errors.Is(err, ErrNotExist) {
		t.Error(err)
	}
	if err := s.Remove(t.Context(), "leases/a"); err != nil {
		t.Error(err)
	}
	endLock("packs/a")
	if err := s.Remove(t.Context(), "packs/a"); err != nil {
		t.Error(err)
	}
	if left := versions(t, c, ""); len(left) != 0 {
		t.Errorf("%d versions are left", len(left))
	}
}

// Who may write to the bucket hides objects, or puts others over them. What was locked is brought back.
func TestWhatWasRemovedOrReplacedIsBroughtBack(t *testing.T) {
	c, endpoint, _ := lockedBucket(t)
	s := openLocked(t, endpoint)
	err := s.LockFor(func(name string) time.Duration {
		if strings.HasPrefix(name, "free/") {
			return 0
		}
		return time.Hour
	})
	for _, name := range []string{"vault", "points/1", "packs/a", "packs/b", "free/a"} {
		err = errors.Join(err, s.Put(t.Context(), name, []byte(name)))
	}
	put := func(name string) {
		_, fault := c.PutObject(t.Context(), "locked", "some/prefix/"+name, bytes.NewReader([]byte("bad")), 3, minio.PutObjectOptions{})
		err = errors.Join(err, fault)
	}
	hide := func(name string) {
		err = errors.Join(err, c.RemoveObject(t.Context(), "locked", "some/prefix/"+name, minio.RemoveObjectOptions{}))
	}
	hide("vault")
	put("points/1")
	put("packs/a")
	hide("packs/a")
	put("packs/a")
	hide("free/a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lock(t.Context(), "vault", time.Now().Add(2*time.Hour)); err == nil || !strings.Contains(err.Error(), "--undelete") {
		t.Errorf("what is hidden was locked: %v", err)
	}
	for _, dry := range []bool{true, false} {
		if n, err := Undelete(t.Context(), s, dry); n != 3 || err != nil {
			t.Errorf("%d objects, want 3: %v", n, err)
		}
	}
	for _, name := range []string{"vault", "points/1", "packs/a", "packs/b"} {
		read(t, s, name, []byte(name))
	}
	if _, err := s.Get(t.Context(), "free/a", 0, 1, nil); !errors.Is(err, ErrNotExist) {
		t.Errorf("what was not locked is back: %v", err)
	}
	if n, err := Undelete(t.Context(), s, false); n != 0 || err != nil {
		t.Errorf("again: %d objects, %v", n, err)
	}
}

func TestWhatCannotLockIsRefused(t *testing.T) {
	c, endpoint, _ := lockedBucket(t)
	if err := openLocked(t, endpoint).Lockable(t.Context()); err != nil {
		t.Error(err)
	}
	plain, files := openS3At(t, endpoint), OnFiles("folder", Local(t.TempDir()))
	err := plain.Lockable(t.Context())
	if !errors.Is(err, ErrNoLock) || !strings.Contains(err.Error(), "must be given when it is made") {
		t.Error(err)
	}
	if _, err := Undelete(t.Context(), files, true); err == nil {
		t.Error("a folder kept what was removed")
	}
	for _, err := range []error{files.Lockable(t.Context()), files.LockFor(nil)} {
		if !errors.Is(err, ErrNoLock) {
			t.Error(err)
		}
	}
	how, days, unit := minio.Compliance, uint(1), minio.Days
	if err := c.SetBucketObjectLockConfig(t.Context(), "locked", &how, &days, &unit); err != nil {
		t.Fatal(err)
	}
	if err := openLocked(t, endpoint).Lockable(t.Context()); !errors.Is(err, ErrNoLock) || !strings.Contains(err.Error(), "by default") {
		t.Error(err)
	}
}
