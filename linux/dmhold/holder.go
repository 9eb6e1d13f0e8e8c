package dmhold

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/linux/dm"
	"tidemark/linux/reexec"
)

// Holder is the part of this program that makes devices stand still, for reexec.Main.
var Holder = reexec.Part{Name: "tidemark-dm-holder", Run: runHolder}

// A holder is the whole of the second process. While devices stand still it starts nothing, and
// opens nothing but what lies in memory.
type holder struct {
	plan   Plan
	ctl    *dm.Control
	orders chan string // closed when the caller has given up, or died
	out    *json.Encoder
	began  time.Time

	mu      sync.Mutex
	pending []*dm.Pending // what udev may not have dealt with
}

func runHolder([]string) int {
	reexec.Harden()
	in := bufio.NewReader(os.Stdin)
	h := &holder{orders: make(chan string), out: json.NewEncoder(os.Stdout)}
	line, err := in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &h.plan)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	go h.listen(in)
	unlock, err := alone()
	if err == nil {
		defer unlock()
		err = h.prepare()
	}
	if err != nil {
		h.say(report{At: atReady}, err)
		return 1
	}
	defer h.ctl.Close()
	h.say(report{At: atReady}, nil)
	if <-h.orders != sayGo {
		return 1
	}
	err = h.hold()
	if err != nil {
		err = errors.Join(err, h.letGo())
	}
	h.say(report{At: atDone, Passed: time.Since(h.began)}, err)
	failed := err != nil
	for _, p := range h.pending {
		if err := p.Wait(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			failed = true
		}
	}
	if failed {
		return 1
	}
	return 0
}

func (h *holder) listen(in *bufio.Reader) {
	defer close(h.orders)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		h.orders <- line[:len(line)-1]
	}
}

// say reports; a caller that is gone hears nothing.
func (h *holder) say(r report, err error) {
	if err != nil {
		r.fail(err)
	}
	_ = h.out.Encode(r)
}

func (h *holder) prepare() (err error) {
	if h.ctl, err = dm.Open(); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, d := range h.plan.Devices {
		err := d.check(h.ctl)
		if seen[d.Name] && err == nil {
			err = fmt.Errorf("%w: %s: it is given twice", ErrRefused, d.Name)
		}
		if seen[d.Name] = true; err != nil {
			return errors.Join(err, h.ctl.Close())
		}
	}
	return nil
}

// alone waits until no other holder is at work: a device that one has suspended must not be resumed
// by another. The lock ends with the process.
func alone() (unlock func(), err error) {
	f, err := os.Open("/dev/mapper/control")
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	return func() { f.Close() }, nil
}

// hold suspends all devices, waits for the caller's word, and carries out what is to change. On
// failure the devices may be suspended.
func (h *holder) hold() error {
	h.began = time.Now()
	deadline := time.NewTimer(h.plan.Limit)
	if err := h.suspend(deadline.C); err != nil {
		return err
	}
	h.say(report{At: atStill}, nil)
	select {
	case order := <-h.orders:
		if order != sayCut {
			return errGaveUp
		}
	case <-deadline.C:
		return ErrExpired
	}
	return h.change()
}

// suspend suspends all devices, side by side. When the time is up before all stand still, those
// that do go on at once, and the others as soon as the kernel has suspended them.
func (h *holder) suspend(deadline <-chan time.Time) (err error) {
	ended := make(chan error)
	for _, d := range h.plan.Devices {
		go func() {
			_, err := h.ctl.Suspend(d.Name, dm.SuspendOptions{NoLockFS: d.NoLockFS})
			ended <- suspendError(err)
		}()
	}
	for range h.plan.Devices {
		var one error
		select {
		case one = <-ended:
		case <-deadline:
			deadline = nil
			err = errors.Join(err, ErrExpired, h.letGo())
			one = <-ended
		}
		if err = errors.Join(err, one); deadline == nil {
			err = errors.Join(err, h.letGo())
		}
	}
	return err
}

// change carries out what is to change, and resumes the devices.
func (h *holder) change() error {
	if err := h.allStand(); err != nil {
		return err
	}
	done := false
	for _, m := range h.plan.Messages {
		if _, err := h.ctl.Message(m.Device, 0, m.Text); err != nil {
			return partly(done, err)
		}
		done = true
	}
	if err := h.allStand(); err != nil {
		return partly(done, err)
	}
	for _, d := range h.plan.Devices {
		if len(d.Table) == 0 {
			continue
		}
		if _, err := h.ctl.Load(d.Name, d.Table, dm.LoadOptions{}); err != nil {
			return partly(done, err)
		}
	}
	for _, name := range h.plan.Start {
		if err := h.resume(name, true); err != nil {
			return partly(done, err)
		}
		done = true
	}
	// A device whose new table fails is resumed by letGo; another may have got its own.
	return partly(done || len(h.plan.Devices) > 1, h.each(func(d Device) error { return h.resume(d.Name, d.Hidden) }))
}

// allStand finds a device that another program has resumed.
func (h *holder) allStand() error {
	for _, d := range h.plan.Devices {
		if info, err := h.ctl.Info(d.Name); err != nil || !info.Suspended {
			return errors.Join(err, fmt.Errorf("%s: another program has let it go on", d.Name))
		}
	}
	return nil
}

var errGaveUp = fmt.Errorf("the caller gave up: %w", io.ErrUnexpectedEOF)

func partly(some bool, err error) error {
	if some && err != nil {
		return fmt.Errorf("%w: %w", ErrPartly, err)
	}
	return err
}

// letGo has all devices go on as they were: a table that waits is dropped first.
func (h *holder) letGo() error {
	return h.each(func(d Device) error {
		if suspended, err := d.settle(h.ctl); !suspended || err != nil {
			return err
		}
		return h.resume(d.Name, d.Hidden)
	})
}

func (h *holder) resume(name string, hidden bool) error {
	_, p, err := h.ctl.StartResume(name, dm.ResumeOptions{Hidden: hidden})
	if err == nil {
		h.mu.Lock()
		h.pending = append(h.pending, p)
		h.mu.Unlock()
	}
	return err
}

// each calls do for all devices, side by side.
func (h *holder) each(do func(Device) error) error {
	errs := make([]error, len(h.plan.Devices))
	var all sync.WaitGroup
	for i, d := range h.plan.Devices {
		all.Go(func() { errs[i] = do(d) })
	}
	all.Wait()
	return errors.Join(errs...)
}
