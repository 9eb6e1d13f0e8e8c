package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func folder(t *testing.T) (Store, string) {
	t.Helper()
	root := filepath.Join(t.TempDir(), "vault")
	s, err := Open(t.Context(), root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, root
}

func TestFolder(t *testing.T) {
	s, root := folder(t)
	conform(t, s)
	if info, err := os.Stat(root); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestNothingIsMadeBelowAFolderThatIsNotThere(t *testing.T) {
	root := filepath.Join(t.TempDir(), "not", "mounted")
	s, err := Open(t.Context(), root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "x", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(root)); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// What does not fit on a disk is not there, and nothing of it is left.
func TestAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount a small tmpfs (root): %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, 0) })
	s, err := Open(t.Context(), filepath.Join(dir, "vault"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.Put(t.Context(), "packs/large", make([]byte, 2<<20)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v, want ENOSPC", err)
	}
	if names := list(t, s, ""); len(names) != 0 {
		t.Errorf("%v is left", names)
	}
	if err := s.Put(t.Context(), "packs/small", make([]byte, 1<<19)); err != nil {
		t.Error(err)
	}
}

// sftpServer puts a program named ssh in the way that is an SFTP server of this machine, and
// writes its process id to a file.
func sftpServer(t *testing.T) (pid string) {
	t.Helper()
	const server = "/usr/lib/openssh/sftp-server"
	if _, err := os.Stat(server); err != nil {
		t.Fatalf("%v: run scripts/setup", err)
	}
	bin := t.TempDir()
	pid = filepath.Join(bin, "pid")
	script := "#!/bin/sh\necho \"$*\" >>'" + bin + "/args'\necho $$ >'" + pid + "'\nexec " + server + "\n"
	if err := os.WriteFile(filepath.Join(bin, "ssh"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return pid
}

func openSFTPAt(t *testing.T, root string) Store {
	t.Helper()
	s, err := Open(t.Context(), "sftp://me@host:2222"+root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSFTP(t *testing.T) {
	pid := sftpServer(t)
	conform(t, openSFTPAt(t, filepath.Join(t.TempDir(), "vault")))
	args, err := os.ReadFile(filepath.Join(filepath.Dir(pid), "args"))
	if want := "-s -o ServerAliveInterval=15 -p 2222 -l me -- host sftp\n"; err != nil || string(args) != want {
		t.Errorf("ssh was called with %q, want %q, %v", args, want, err)
	}
}

func TestAddressesThatAreRefused(t *testing.T) {
	for _, address := range []string{"", "sftp://host", "sftp:///path", "sftp://me:secret@host/path", "sftp://-oProxyCommand=x/path", "ftp://host/path", "s3://", "s3://bucket/a b", "s3://bucket/../x"} {
		if s, err := Open(t.Context(), address, Options{}); err == nil {
			t.Errorf("%q: %v", address, s)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error tells a secret: %v", address, err)
		}
	}
	if _, err := Open(t.Context(), t.TempDir(), Options{Endpoint: "https://host"}); err == nil {
		t.Error("a folder with an endpoint")
	}
}

// patient asks a store again when it is back.
func patient(s Store, back func()) Store {
	return &retry{Store: s, pause: func(ctx context.Context, _ time.Duration) error {
		back()
		return ctx.Err()
	}}
}

// The server is killed in the middle of puts, again and again; what was put is there, and
// nothing is there that is not whole.
func TestSFTPServersThatAreKilled(t *testing.T) {
	pid := sftpServer(t)
	s := patient(openSFTPAt(t, filepath.Join(t.TempDir(), "vault")), func() {})
	putMany(t, s, func() { killSFTP(t, pid) }, 50)
}

// killSFTP kills the SFTP server whose process id a file has.
func killSFTP(t *testing.T, pid string) {
	text, err := os.ReadFile(pid)
	if err != nil {
		t.Error(err)
		return
	}
	p, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return // a server is just starting
	}
	if err := syscall.Kill(p, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Error(err)
	}
}

// putMany puts objects while the other side is killed that many times.
func putMany(t *testing.T, s Store, kill func(), times int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 4<<20)
	rand.NewChaCha8([32]byte{2}).Read(data)
	done := make(chan error)
	for i := range times {
		name := fmt.Sprintf("packs/%d", i)
		go func() { done <- s.Put(t.Context(), name, data) }()
		for range rng.IntN(2000) { // somewhere in the middle
			list := make([]byte, 1)
			_ = bytes.Count(list, list)
		}
		kill()
		if err := <-done; err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if i%10 == 0 {
			read(t, s, name, data)
		}
	}
	if got := list(t, s, "packs/"); len(got) != times {
		t.Errorf("%d objects, want %d", len(got), times)
	}
	err := s.List(t.Context(), "packs/", func(i Info) error {
		if i.Size != int64(len(data)) {
			return fmt.Errorf("%s has %d bytes", i.Name, i.Size)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// s3Server runs an S3 server over a folder, with a bucket, and returns its address and what
// kills it; then it comes back.
func s3Server(t *testing.T) (endpoint string, kill func()) {
	endpoint, _, kill = s3ServerOver(t)
	return endpoint, kill
}

// s3ServerOver returns its folder, too. Older versions of objects lie in another one.
func s3ServerOver(t *testing.T) (endpoint, root string, kill func()) {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	programs, _ := filepath.Glob(filepath.Join(cache, "tidemark/s3/versitygw-*"))
	if len(programs) != 1 {
		t.Fatalf("no S3 server: run scripts/s3-server (found %v)", programs)
	}
	root, versions := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "bucket"), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	l.Close()
	t.Setenv("AWS_ACCESS_KEY_ID", "key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	t.Setenv("AWS_REGION", "us-east-1")
	var current atomic.Pointer[exec.Cmd]
	start := func() {
		cmd := exec.Command(programs[0], "--access", "key", "--secret", "secret", "--region", "us-east-1", "--port", at, "--quiet", "posix", "--versioning-dir", versions, root)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		current.Store(cmd)
	}
	stop := func() {
		cmd := current.Load()
		cmd.Process.Kill()
		cmd.Wait()
	}
	start()
	t.Cleanup(stop)
	awaitPort(t, at)
	return "http://" + at, root, func() { stop(); start(); awaitPort(t, at) }
}

func awaitPort(t *testing.T, at string) {
	t.Helper()
	for t.Context().Err() == nil {
		if c, err := net.Dial("tcp", at); err == nil {
			c.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func openS3At(t *testing.T, endpoint string) Store {
	t.Helper()
	s, err := Open(t.Context(), "s3://bucket/some/prefix", Options{Endpoint: endpoint})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestS3(t *testing.T) {
	endpoint, _ := s3Server(t)
	conform(t, openS3At(t, endpoint))
}

// The server is killed and started in the middle of puts.
func TestS3ServersThatAreKilled(t *testing.T) {
	endpoint, kill := s3Server(t)
	at := strings.TrimPrefix(endpoint, "http://")
	putMany(t, patient(openS3At(t, endpoint), func() { awaitPort(t, at) }), kill, 10)
}

// cutter passes bytes on to a server, and cuts each connection after some.
type cutter struct {
	listener net.Listener
	to       string
	rng      *rand.Rand
	cuts     atomic.Int64
}

func newCutter(t *testing.T, to string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{listener: l, to: to, rng: rand.New(rand.NewPCG(3, 4))}
	t.Cleanup(func() { l.Close() })
	go c.serve()
	return c
}

func (c *cutter) serve() {
	for {
		from, err := c.listener.Accept()
		if err != nil {
			return
		}
		to, err := net.Dial("tcp", c.to)
		if err != nil {
			from.Close()
			continue
		}
		up, down := int64(1<<40), int64(1<<40)
		switch c.rng.IntN(3) {
		case 0:
			up = c.rng.Int64N(5 << 20)
		case 1:
			down = c.rng.Int64N(2000) // the server did it, and nobody is told
		}
		go c.pass(to, from, up)
		go c.pass(from, to, down)
	}
}

func (c *cutter) pass(to, from net.Conn, n int64) {
	if _, err := io.CopyN(to, from, n); err == nil {
		c.cuts.Add(1)
	}
	to.Close()
	from.Close()
}

// Connections are cut in both directions: a put whose answer was lost had succeeded.
func TestS3OverConnectionsThatAreCut(t *testing.T) {
	endpoint, _ := s3Server(t)
	at, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	c := newCutter(t, at.Host)
	putMany(t, patient(openS3At(t, "http://"+c.listener.Addr().String()), func() {}), func() {}, 30)
	if c.cuts.Load() == 0 {
		t.Error("no connection was cut")
	}
}

// A store that is gone is asked again, later and later, and not for ever; what it refuses
// is refused at once.
func TestRetry(t *testing.T) {
	var waited time.Duration
	calls := 0
	fault := error(ErrLost)
	s := &retry{Store: failing{fault: func() error { calls++; return fault }}, pause: func(_ context.Context, d time.Duration) error {
		waited += d
		return nil
	}}
	if err := s.Put(t.Context(), "x", nil); !errors.Is(err, ErrLost) {
		t.Error(err)
	}
	if waited < patience || waited > patience+lastPause || calls < 10 {
		t.Errorf("%d calls in %v", calls, waited)
	}
	fault, calls = ErrExists, 0
	if err := s.Put(t.Context(), "x", nil); !errors.Is(err, ErrExists) || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

type failing struct {
	Store
	fault func() error
}

func (f failing) Put(context.Context, string, []byte) error { return f.fault() }
