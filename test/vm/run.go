package vm

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark/test/vm/wire"
)

// Run boots a guest, runs the program's tests in it as subtests of t, and returns
// what is left. A guest that runs no test, ends early or is not cut although a disk
// was to cut its power fails t.
func Run(t *testing.T, cfg Config, p Program) Result {
	t.Helper()
	cfg = cfg.withDefaults()
	if cfg.ScratchMB > 0 {
		cfg.Disks = append(slices.Clone(cfg.Disks), NewDisk(t, wire.ScratchDisk, int64(cfg.ScratchMB)<<20))
	}
	c, err := openCache()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "tidemark-vm-") // short: the path of a socket has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	image, err := c.boots(dir, &cfg, p)
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.start(dir, image, cfg)
	if err != nil {
		t.Fatal(err)
	}
	result, err := m.run(t, p)
	if err != nil {
		t.Error(err)
	}
	if t.Failed() && err == nil {
		t.Log(tail(result.Console))
	}
	return result
}

func (cfg Config) withDefaults() Config {
	if cfg.Kernel == "" {
		cfg.Kernel = Newest
	}
	if cfg.MemMB == 0 {
		cfg.MemMB = 640
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Minute
	}
	return cfg
}

// run sees a guest from boot to end.
func (m *Machine) run(t *testing.T, p Program) (Result, error) {
	files := t.TempDir()
	var streams sync.WaitGroup
	report := newReport()
	var exit exitLine
	handlers := map[string]func(net.Conn) error{
		wire.PortTest:  func(conn net.Conn) error { return readTests(conn, p.Package, report, &exit) },
		wire.PortTalk:  m.answer,
		wire.PortFiles: func(conn net.Conn) error { return receive(conn, files) },
	}
	var mu sync.Mutex
	var failed error
	for _, port := range ports {
		l, err := m.listen(port)
		if err != nil {
			return Result{}, errors.Join(err, m.release())
		}
		streams.Go(func() {
			if err := serveOnce(l, handlers[port]); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = errors.Join(failed, fmt.Errorf("port %s: %w", port, err))
			}
		})
	}
	if err := m.launch(); err != nil {
		return Result{}, errors.Join(err, m.release())
	}
	alarm := time.AfterFunc(m.cfg.Timeout, func() { m.kill("timeout") })
	defer alarm.Stop()
	report.run(t, m.wasCut)
	streams.Wait()
	<-m.ended
	result := Result{Files: files, Cut: m.cut, Tests: report.tests, Total: time.Since(m.started), Writes: map[string]int{}}
	if exit.begun.After(m.started) {
		result.Boot = exit.begun.Sub(m.started)
	}
	return result, errors.Join(failed, m.finish(&result, exit, t.Failed()))
}

// finish fills in what can be known only at the end and judges how the guest ended;
// failed tests have been reported already.
func (m *Machine) finish(r *Result, exit exitLine, failed bool) error {
	for name, disk := range m.disks {
		r.Writes[name], _ = disk.Count()
	}
	var err error
	if r.Cut {
		r.Lost, err = m.forget()
	}
	console, readErr := os.ReadFile(consoleFile(m.dir))
	r.Console = string(console)
	return errors.Join(err, readErr, m.release(), m.judge(r, exit, failed))
}

// judge is nil when the guest ended as it should.
func (m *Machine) judge(r *Result, exit exitLine, failed bool) error {
	switch {
	case r.Cut:
		return nil
	case m.cfg.NoTests && m.killed == "" && r.Tests == 0:
		return nil
	case m.killed != "":
		return fmt.Errorf("guest: %s after %v\n%s", m.killed, r.Total.Round(time.Second), tail(r.Console))
	case exit.text == "":
		qemu, _ := os.ReadFile(m.dir + "/qemu") //nolint:errcheck // only adds to the message
		return fmt.Errorf("guest: ended before its tests did\n%s%s", qemu, tail(r.Console))
	case exit.text != "0" && !failed:
		return fmt.Errorf("guest: tests ended with exit code %s\n%s", exit.text, tail(r.Console))
	case r.Tests == 0:
		return errors.New("guest: no test ran")
	}
	return nil
}

// tail is the end of a console's text.
func tail(console string) string {
	const most = 200
	lines := strings.Split(strings.TrimSpace(console), "\n")
	return "console:\n" + strings.Join(lines[max(0, len(lines)-most):], "\n")
}

// serveOnce hands the one connection that l gets to handle, if there is one.
func serveOnce(l net.Listener, handle func(net.Conn) error) error {
	conn, err := l.Accept()
	if errors.Is(err, net.ErrClosed) {
		return nil // QEMU ended before it connected
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	return handle(conn)
}

// answer answers the guest's events, a line each, until the guest ends.
func (m *Machine) answer(conn net.Conn) error {
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		answer := ""
		if m.cfg.OnEvent != nil {
			answer = m.cfg.OnEvent(m, lines.Text())
		}
		if _, err := fmt.Fprintln(conn, answer); err != nil {
			return nil //nolint:nilerr // the guest is gone
		}
	}
	return nil
}

// receive unpacks the guest's files, and tells the guest that it has them.
func receive(conn net.Conn, dir string) error {
	if err := untar(conn, dir); err != nil {
		return err
	}
	_, _ = conn.Write([]byte{0}) // a guest that was cut off does not wait for it
	return nil
}

// untar unpacks the guest's files; an empty stream has none.
func untar(r io.Reader, dir string) error {
	archive := tar.NewReader(r)
	for {
		head, err := archive.Next()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := unpack(archive, head, filepath.Join(dir, filepath.Clean("/"+head.Name))); err != nil {
			return err
		}
	}
}

func unpack(r io.Reader, head *tar.Header, to string) error {
	if head.Typeflag == tar.TypeDir {
		return os.MkdirAll(to, 0o755)
	}
	file, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, r)
	return errors.Join(err, file.Close())
}
