package vm

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark/test/vm/wire"
)

// event is one line of test2json.
type event struct {
	Action string
	Test   string
	Output string

	child *node // of action "run"
}

// exitLine is what the guest's init said last.
type exitLine struct {
	text  string    // the exit code; "": it said nothing
	begun time.Time // when the first output came
}

// readTests turns the guest's test output into the report's events.
func readTests(conn net.Conn, pkg string, r *report, exit *exitLine) error {
	defer r.end()
	convert := exec.Command("go", "tool", "test2json", "-p", pkg)
	in, err := convert.StdinPipe()
	if err != nil {
		return err
	}
	out, err := convert.StdoutPipe()
	if err != nil {
		return err
	}
	if err := convert.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- r.read(out) }()
	copyTests(in, conn, exit)
	return errors.Join(in.Close(), <-done, convert.Wait())
}

// copyTests copies the test output up to init's last line.
func copyTests(to io.Writer, from io.Reader, exit *exitLine) {
	lines := bufio.NewReader(from)
	for {
		line, err := lines.ReadBytes('\n')
		if exit.begun.IsZero() && len(line) > 0 {
			exit.begun = time.Now()
		}
		if code, ok := bytes.CutPrefix(line, []byte(wire.ExitLine)); ok {
			exit.text = strings.TrimSpace(string(code))
			io.Copy(io.Discard, lines) //nolint:errcheck // nothing of it is wanted
			return
		}
		if _, werr := to.Write(line); err != nil || werr != nil {
			return
		}
	}
}

// report replays the guest's tests as subtests while they run.
type report struct {
	mu    sync.Mutex
	more  *sync.Cond
	nodes map[string]*node
	root  *node
	over  bool // no more events will come
	tests int
}

// node is one test of the guest and what has happened to it but is not yet replayed.
type node struct {
	name   string
	events []event // Action "run": of a child
}

func newReport() *report {
	r := &report{nodes: map[string]*node{}, root: &node{}}
	r.more = sync.NewCond(&r.mu)
	return r
}

// read queues test2json's events.
func (r *report) read(out io.Reader) error {
	dec := json.NewDecoder(out)
	for {
		var e event
		err := dec.Decode(&e)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("test2json: %w", err)
		}
		r.add(e)
	}
}

func (r *report) add(e event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodes[e.Test]
	switch {
	case e.Action == "run":
		r.tests++
		n = r.parent(e.Test)
		e.child = &node{name: e.Test} // one of before may have had that name, in another stage
		r.nodes[e.Test] = e.child
	case n == nil:
		n = r.root
	}
	n.events = append(n.events, e)
	r.more.Broadcast()
}

// parent is the closest test above the one named.
func (r *report) parent(name string) *node {
	for i := strings.LastIndexByte(name, '/'); i > 0; i = strings.LastIndexByte(name[:i], '/') {
		if n := r.nodes[name[:i]]; n != nil {
			return n
		}
	}
	return r.root
}

func (r *report) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	r.more.Broadcast()
}

// next waits for a node's next event; false when there is none any more.
func (r *report) next(n *node) (event, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(n.events) == 0 {
		if r.over {
			return event{}, false
		}
		r.more.Wait()
	}
	e := n.events[0]
	n.events = n.events[1:]
	return e, true
}

// run replays everything below t. A test that never ended is a failure unless the
// power was cut.
func (r *report) run(t *testing.T, wasCut func() bool) {
	r.replay(t, r.root, wasCut)
}

func (r *report) replay(t *testing.T, n *node, wasCut func() bool) {
	for {
		e, ok := r.next(n)
		if !ok {
			break
		}
		switch e.Action {
		case "run":
			r.child(t, n, e.child, wasCut)
		case "output":
			io.WriteString(t.Output(), output(e.Output)) //nolint:errcheck // it cannot fail
		case "pass", "fail", "skip":
			if n != r.root {
				conclude(t, e.Action)
				return
			}
		}
	}
	if n == r.root {
		return
	}
	if wasCut() {
		t.Log("the power was cut here")
		return
	}
	t.Error("the guest ended before this test did")
}

// child replays a test below n's.
func (r *report) child(t *testing.T, n, c *node, wasCut func() bool) {
	t.Run(strings.TrimPrefix(strings.TrimPrefix(c.name, n.name), "/"), func(t *testing.T) {
		r.replay(t, c, wasCut)
	})
}

func conclude(t *testing.T, action string) {
	switch action {
	case "fail":
		t.Fail()
	case "skip":
		t.SkipNow()
	}
}

// output drops the lines with which a test binary frames its tests; the host's own
// frames stand for them.
func output(line string) string {
	for _, frame := range [...]string{"=== ", "--- ", "PASS\n", "FAIL\n"} {
		if strings.HasPrefix(strings.TrimLeft(line, " "), frame) {
			return ""
		}
	}
	return line
}
