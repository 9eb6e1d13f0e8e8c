package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

const amazon = "https://s3.amazonaws.com"

// bucket keeps objects in S3. A put asks the server to replace nothing (If-None-Match).
type bucket struct {
	core           minio.Core
	bucket, prefix string
	keep           func(name string) time.Duration // of LockFor; nil: nothing is locked
}

// openS3 takes keys from where Amazon's tools do: the environment, the profile, the machine.
func openS3(u *url.URL, o Options) (Store, error) {
	endpoint := o.Endpoint
	if endpoint == "" {
		endpoint = amazon
	}
	at, err := url.Parse(endpoint)
	if err != nil || at.Scheme != "http" && at.Scheme != "https" || at.Host == "" || strings.Trim(at.Path, "/") != "" {
		return nil, fmt.Errorf("store: endpoint %q: want https://host[:port]", endpoint)
	}
	if u.Host == "" || u.User != nil || u.RawQuery+u.Fragment != "" {
		return nil, fmt.Errorf("store: %s: want s3://bucket/prefix", u.Redacted())
	}
	client, err := minio.New(at.Host, &minio.Options{
		Secure: at.Scheme == "https",
		Creds: credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{Client: http.DefaultClient},
		}),
	})
	if err != nil {
		return nil, fmt.Errorf("store: %s: %w", u, err)
	}
	prefix := strings.Trim(u.Path, "/")
	if prefix != "" {
		if err := checkName(prefix); err != nil {
			return nil, err
		}
		prefix += "/"
	}
	return &bucket{core: minio.Core{Client: client}, bucket: u.Host, prefix: prefix}, nil
}

func (b *bucket) String() string { return strings.TrimSuffix("s3://"+b.bucket+"/"+b.prefix, "/") }
func (b *bucket) Close() error   { return nil }

func (b *bucket) Put(ctx context.Context, name string, data []byte) error {
	if err := checkName(name); err != nil {
		return err
	}
	o := minio.PutObjectOptions{ContentType: "application/octet-stream", DisableMultipart: true}
	o.SetMatchETagExcept("*")
	b.lockPut(name, &o)
	_, err := b.core.Client.PutObject(ctx, b.bucket, b.prefix+name, bytes.NewReader(data), int64(len(data)), o)
	if err != nil {
		return same(ctx, b, name, data, b.fault("write", name, err))
	}
	return nil
}

func (b *bucket) Get(ctx context.Context, name string, off, n int64, room []byte) ([]byte, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	var o minio.GetObjectOptions
	if err := o.SetRange(off, off+n-1); err != nil {
		return nil, b.fault("read", name, err)
	}
	r, _, _, err := b.core.GetObject(ctx, b.bucket, b.prefix+name, o)
	if minio.ToErrorResponse(err).Code == minio.InvalidRange {
		return nil, nil // the object ends before
	} else if err != nil {
		return nil, b.fault("read", name, err)
	}
	data, got := roomFor(n, room), 0
	for got < len(data) && err == nil {
		var more int
		more, err = r.Read(data[got:])
		got += more
	}
	if err == io.EOF { // the object ends before; a connection that is cut is io.ErrUnexpectedEOF
		err = nil
	}
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, b.fault("read", name, err)
	}
	return data[:got], nil
}

func (b *bucket) List(ctx context.Context, prefix string, each func(Info) error) error {
	for o := range b.core.ListObjectsIter(ctx, b.bucket, minio.ListObjectsOptions{Prefix: b.prefix + prefix, Recursive: true}) {
		if o.Err != nil {
			return b.fault("list", prefix, o.Err)
		}
		if err := each(Info{Name: strings.TrimPrefix(o.Key, b.prefix), Size: o.Size, Time: o.LastModified}); err != nil {
			return err
		}
	}
	return nil
}

func (b *bucket) Remove(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if b.keep != nil {
		return b.removeVersion(ctx, name)
	}
	err := b.core.Client.RemoveObject(ctx, b.bucket, b.prefix+name, minio.RemoveObjectOptions{})
	if minio.ToErrorResponse(err).Code == minio.NoSuchKey {
		return nil
	} else if err != nil {
		return b.fault("remove", name, err)
	}
	return nil
}

// fault gives an error a class: what the server said no to is final, but for its own failures.
func (b *bucket) fault(what, name string, err error) error {
	said := minio.ToErrorResponse(err)
	switch code := said.StatusCode; {
	case errors.Is(err, ErrLocked): // which is ours
	case said.Code == minio.NoSuchKey:
		err = fmt.Errorf("%w: %w", ErrNotExist, err)
	case code == http.StatusPreconditionFailed:
		err = fmt.Errorf("%w: %w", ErrExists, err)
	case code == http.StatusNotImplemented:
		err = fmt.Errorf("the server cannot do what a vault needs (If-None-Match): %w", err)
	case code == 0 || code >= 500 || code == http.StatusTooManyRequests || code == http.StatusConflict:
		// A conflict is another put of the same name under way: who asks again is told who won.
		err = fmt.Errorf("%w: %w", ErrLost, err)
	}
	return fmt.Errorf("store: %s %s in %s: %w", what, name, b, err)
}
