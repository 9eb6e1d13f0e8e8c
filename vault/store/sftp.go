package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path"
	"strings"
	"sync"

	"github.com/pkg/sftp"
)

// fsync is the extension of SFTP without which nothing survives a power cut.
const fsync = "fsync@openssh.com"

// openSFTP connects by the ssh of the system, so that the user's configuration, agent and
// known hosts hold.
func openSFTP(ctx context.Context, u *url.URL) (Store, error) {
	if _, secret := u.User.Password(); secret {
		return nil, fmt.Errorf("store: %s: no passwords in addresses; use a key of SSH", u.Redacted())
	}
	if u.Hostname() == "" || strings.HasPrefix(u.Hostname(), "-") || strings.Trim(u.Path, "/") == "" || u.RawQuery+u.Fragment != "" {
		return nil, fmt.Errorf("store: %s: want sftp://[user@]host[:port]/path", u)
	}
	args := []string{"-s", "-o", "ServerAliveInterval=15"}
	if u.Port() != "" {
		args = append(args, "-p", u.Port())
	}
	if u.User.Username() != "" {
		args = append(args, "-l", u.User.Username())
	}
	args = append(args, "--", u.Hostname(), "sftp")
	r := &remote{root: path.Clean(u.Path), dial: func() *exec.Cmd { return exec.Command("ssh", args...) }}
	if _, err := r.connect(); err != nil {
		return nil, errors.Join(fmt.Errorf("store: %s: %w", u, err), ctx.Err())
	}
	return OnFiles(u.String(), r), nil
}

// remote is a tree of files behind SFTP. A connection that is lost is made anew when somebody
// asks for something.
type remote struct {
	root string
	dial func() *exec.Cmd
	mu   sync.Mutex
	link *link // nil where there is none
}

// link is one connection.
type link struct {
	client *sftp.Client
	cmd    *exec.Cmd
	said   *lastWords
}

func (r *remote) connect() (*link, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.link != nil {
		return r.link, nil
	}
	l := &link{cmd: r.dial(), said: new(lastWords)}
	l.cmd.Stderr = l.said
	in, err := l.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	if err := l.cmd.Start(); err != nil {
		return nil, errors.Join(err, in.Close(), out.Close())
	}
	l.client, err = sftp.NewClientPipe(out, in, sftp.UseConcurrentWrites(true))
	if err != nil {
		in.Close()
		l.cmd.Wait() // the reason is what it said
		return nil, fmt.Errorf("%w: %w: %s", ErrLost, err, l.said)
	}
	if _, ok := l.client.HasExtension(fsync); !ok {
		l.close()
		return nil, fmt.Errorf("the server cannot make files durable (%s): use one of OpenSSH", fsync)
	}
	r.link = l
	return l, nil
}

// close ends the connection. Errors say nothing: what had to be safe was synced before.
func (l *link) close() {
	l.client.Close()
	l.cmd.Wait()
}

// drop forgets a connection that was lost.
func (r *remote) drop(l *link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.link == l {
		r.link = nil
		l.close()
	}
}

// do runs f over a connection, and gives its error a class.
func (r *remote) do(name string, f func(c *sftp.Client, path string) error) error {
	l, err := r.connect()
	if err != nil {
		return err
	}
	return r.classed(l, f(l.client, path.Join(r.root, name)))
}

// open opens a file, whose own errors get a class, too.
func (r *remote) open(name string, flags int) (*remoteFile, error) {
	l, err := r.connect()
	if err != nil {
		return nil, err
	}
	f, err := l.client.OpenFile(path.Join(r.root, name), flags)
	if err != nil {
		return nil, r.classed(l, err)
	}
	return &remoteFile{File: f, r: r, l: l}, nil
}

// classed says of an error of the connection that it is one. What a server refuses is no such.
func (r *remote) classed(l *link, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	status, isStatus := errors.AsType[*sftp.StatusError](err)
	if isStatus && status.FxCode() != sftp.ErrSSHFxConnectionLost && status.FxCode() != sftp.ErrSSHFxNoConnection ||
		errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return err
	}
	r.drop(l)
	return fmt.Errorf("%w: %w %s", ErrLost, err, l.said)
}

func (r *remote) Create(name string) (File, error) {
	return r.open(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
}

func (r *remote) Open(name string) (ReadFile, error) { return r.open(name, os.O_RDONLY) }

// Rename is a link and an unlink at the server, which replace nothing (OpenSSH's process_rename).
func (r *remote) Rename(from, to string) error {
	return r.do(from, func(c *sftp.Client, old string) error {
		target := path.Join(r.root, to)
		return exists(c, target, c.Rename(old, target))
	})
}

func (r *remote) Mkdir(name string) error {
	return r.do(name, func(c *sftp.Client, path string) error { return exists(c, path, c.Mkdir(path)) })
}

// exists says so where that is why the server failed: it has no other word for it than failure.
func exists(c *sftp.Client, path string, err error) error {
	status, ok := errors.AsType[*sftp.StatusError](err)
	if !ok || status.FxCode() != sftp.ErrSSHFxFailure {
		return err
	}
	if _, there := c.Lstat(path); there != nil {
		return err
	}
	return fmt.Errorf("%w: %w", fs.ErrExist, err)
}

func (r *remote) Remove(name string) error {
	return r.do(name, func(c *sftp.Client, path string) error { return c.Remove(path) })
}

func (r *remote) ReadDir(name string) (infos []fs.FileInfo, err error) {
	err = r.do(name, func(c *sftp.Client, path string) (err error) {
		infos, err = c.ReadDir(path)
		return err
	})
	return infos, err
}

// SyncDir opens the folder as a file, which OpenSSH's server does (open(2) allows it), and syncs
// that.
func (r *remote) SyncDir(name string) error {
	f, err := r.open(name, os.O_RDONLY)
	if err != nil {
		return fmt.Errorf("sync a folder: %w", err)
	}
	return errors.Join(f.Sync(), f.Close())
}

func (r *remote) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.link != nil {
		r.link.close()
		r.link = nil
	}
	return nil
}

// remoteFile gives errors a class.
type remoteFile struct {
	*sftp.File
	r *remote
	l *link
}

func (f *remoteFile) Write(p []byte) (int, error) {
	n, err := f.File.ReadFromWithConcurrency(bytes.NewReader(p), 0)
	return int(n), f.r.classed(f.l, err)
}

func (f *remoteFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	return n, f.r.classed(f.l, err)
}

func (f *remoteFile) Sync() error  { return f.r.classed(f.l, f.File.Sync()) }
func (f *remoteFile) Close() error { return f.r.classed(f.l, f.File.Close()) }

// lastWords keeps the end of what a program said.
type lastWords struct {
	mu   sync.Mutex
	said []byte
}

func (w *lastWords) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, p...)
	w.said = w.said[max(0, len(w.said)-1000):]
	return len(p), nil
}

func (w *lastWords) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(strings.Fields(string(w.said)), " ")
}
