package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"filippo.io/age"

	format "tidemark/format/vault"
	"tidemark/vault"
	objects "tidemark/vault/store"
)

// s3 starts the server that scripts/s3-server builds, and counts its requests.
func (l *lab) s3(root string) (endpoint string, requests *atomic.Int64, err error) {
	out, err := exec.Command("scripts/s3-server").Output() // in the user's cache, not in that of the lab
	if err != nil {
		return "", nil, fmt.Errorf("scripts/s3-server: %w", err)
	}
	program := strings.TrimSpace(string(out))
	if err := os.MkdirAll(filepath.Join(root, "bucket"), 0o700); err != nil {
		return "", nil, err
	}
	for name, value := range map[string]string{"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"} {
		if err := os.Setenv(name, value); err != nil {
			return "", nil, err
		}
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	at := free.Addr().String()
	free.Close()
	server := l.command(program, "--access", "key", "--secret", "secret", "--region", "us-east-1", "--port", at, "--quiet", "posix", root)
	if err := server.Start(); err != nil {
		return "", nil, err
	}
	l.later(func() error {
		server.Process.Kill()
		server.Wait() // it was killed: its exit code says nothing
		return nil
	})
	for i := 0; ; i++ {
		c, err := net.Dial("tcp", at)
		if err == nil {
			c.Close()
			break
		}
		if i == 500 {
			return "", nil, err
		}
		time.Sleep(10 * time.Millisecond)
	}
	counted, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	l.later(counted.Close)
	requests = new(atomic.Int64)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			requests.Add(1)
			r.SetURL(&url.URL{Scheme: "http", Host: at})
			r.Out.Host = r.In.Host
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: 64},
	}
	go http.Serve(counted, proxy) // until the listener is closed
	return "http://" + counted.Addr().String(), requests, nil
}

// manyPoints makes a vault with points, each with a block of its own.
func manyPoints(address, endpoint string) (*age.X25519Identity, error) {
	key, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	s, err := objects.Open(ctx, address, objects.Options{Endpoint: endpoint})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if err := vault.Init(ctx, s, key.Recipient()); err != nil {
		return nil, err
	}
	v, err := vault.Open(ctx, s, vault.Options{Identities: []age.Identity{key}})
	if err != nil {
		return nil, err
	}
	defer v.Close()
	d, err := v.AddDisk(ctx, format.Disk{Name: "disk"})
	if err != nil {
		return nil, err
	}
	var base *vault.Point
	began := time.Now().Add(-listedPoints * time.Hour)
	for i := range listedPoints {
		w, err := v.Begin(ctx, vault.From{Disk: d.ID, Size: 16 << 20, Base: base})
		if err != nil {
			return nil, err
		}
		_, err = w.Put(int64(i)*4096, []byte(strings.Repeat("x", 4096)))
		var p vault.Point
		if err == nil {
			p, err = w.Commit(format.Point{Moment: began.Add(time.Duration(i) * time.Hour)})
		}
		if err = errors.Join(err, w.Close()); err != nil {
			return nil, err
		}
		base = &p
	}
	return key, nil
}
