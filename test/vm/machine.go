package vm

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"tidemark/test/vm/volatile"
)

// Machine is a running guest.
type Machine struct {
	dir       string
	cfg       Config
	cmd       *exec.Cmd
	slot      *os.File
	listeners []net.Listener
	disks     map[string]*volatile.Disk // the volatile ones, by name
	serving   sync.WaitGroup
	ended     chan struct{} // closed when QEMU is gone
	started   time.Time

	mu     sync.Mutex
	cut    bool
	killed string // why the rig killed it, "" when it did not
}

// start boots a guest; dir takes its sockets and console.
func (c cache) start(dir, image string, cfg Config) (*Machine, error) {
	m := &Machine{dir: dir, cfg: cfg, disks: map[string]*volatile.Disk{}, ended: make(chan struct{})}
	if err := m.serveDisks(); err != nil {
		return nil, errors.Join(err, m.release())
	}
	slot, err := c.slot()
	if err != nil {
		return nil, errors.Join(err, m.release())
	}
	m.slot = slot
	m.cmd = c.qemu(dir, image, cfg)
	log, err := os.Create(dir + "/qemu")
	if err != nil {
		return nil, errors.Join(err, m.release())
	}
	defer log.Close()
	m.cmd.Stdout, m.cmd.Stderr = log, log
	m.started = time.Now()
	return m, nil
}

// launch starts QEMU; the ports must be listened on.
func (m *Machine) launch() error {
	if err := m.cmd.Start(); err != nil {
		return err
	}
	go func() {
		defer close(m.ended)
		m.cmd.Wait() //nolint:errcheck // how it ended shows in what it said
		for _, l := range m.listeners {
			l.Close()
		}
	}()
	return nil
}

// PowerCut cuts the guest's power now.
func (m *Machine) PowerCut() {
	m.mu.Lock()
	m.cut = true
	m.mu.Unlock()
	m.kill("power cut")
}

// Writes is how many writes have arrived at a volatile disk.
func (m *Machine) Writes(disk string) int {
	writes, _ := m.disks[disk].Count()
	return writes
}

// CutAtWrite cuts the guest's power when the nth write from now, counted from 1,
// arrives at a volatile disk.
func (m *Machine) CutAtWrite(disk string, n int) {
	m.disks[disk].CutAt(m.Writes(disk)+n, func() { go m.PowerCut() })
}

// kill ends QEMU for a reason, the first of which is remembered.
func (m *Machine) kill(reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.killed == "" {
		m.killed = reason
	}
	m.cmd.Process.Kill() //nolint:errcheck // it may have ended by itself
}

func (m *Machine) wasCut() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cut
}

// serveDisks starts the servers of the volatile disks.
func (m *Machine) serveDisks() error {
	for _, d := range m.cfg.Disks {
		if !d.Volatile {
			continue
		}
		disk, err := volatile.Open(d.Path, 0)
		if err != nil {
			return err
		}
		m.disks[d.Name] = disk
		if d.CutAtWrite > 0 {
			disk.CutAt(d.CutAtWrite, func() { go m.PowerCut() })
		}
		l, err := m.listen(d.Name)
		if err != nil {
			return err
		}
		m.serving.Go(func() { disk.Serve(l) }) //nolint:errcheck // the guest reports I/O errors
	}
	return nil
}

// listen listens for QEMU's one connection to the socket of that name.
func (m *Machine) listen(name string) (net.Listener, error) {
	l, err := net.Listen("unix", socket(m.dir, name))
	if err != nil {
		return nil, fmt.Errorf("socket of %s: %w", name, err)
	}
	m.listeners = append(m.listeners, l)
	return l, nil
}

// forget makes the volatile disks lose what a power cut loses, and returns how much.
func (m *Machine) forget() (map[string]int64, error) {
	lost := map[string]int64{}
	for _, d := range m.cfg.Disks {
		disk := m.disks[d.Name]
		if disk == nil {
			continue
		}
		n, err := disk.PowerCut(d.Seed)
		if err != nil {
			return lost, err
		}
		lost[d.Name] = n
	}
	return lost, nil
}

// release closes what the machine holds; QEMU must be gone or never have run.
func (m *Machine) release() error {
	var err error
	for _, l := range m.listeners {
		l.Close()
	}
	m.serving.Wait()
	for _, d := range m.disks {
		err = errors.Join(err, d.Close())
	}
	if m.slot != nil {
		err = errors.Join(err, m.slot.Close())
	}
	return err
}
