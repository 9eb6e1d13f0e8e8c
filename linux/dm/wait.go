package dm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Wait waits until a device has had an event since Info.EventNr was event: its target
// reported something, or the device got another table or name. It returns the state
// after it, an error wrapping ErrNotFound when the device is removed meanwhile, or
// the context's when that ends first. It needs Linux 4.13.
func (c *Control) Wait(ctx context.Context, name string, event uint32) (Info, error) {
	if _, err := checkName(name); err != nil {
		return Info{}, fmt.Errorf("dm: wait for %q: %w", name, err)
	}
	// Every open file is armed by itself.
	file, err := openControl()
	if err != nil {
		return Info{}, err
	}
	defer file.Close()
	if err := file.SetReadDeadline(time.Time{}); err != nil {
		return Info{}, fmt.Errorf("dm: wait for %q: %w: poll on the control device came with Linux 4.13: %w", name, ErrNotSupported, err)
	}
	own := &Control{file: file, version: c.version}
	stop := context.AfterFunc(ctx, func() { _ = file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	return own.wait(ctx, name, event)
}

// wait is Wait on a connection of its own. Polling tells of any device's event since
// it was armed, so each round arms first and then looks.
func (c *Control) wait(ctx context.Context, name string, event uint32) (Info, error) {
	conn, err := c.file.SyscallConn()
	if err != nil {
		return Info{}, fmt.Errorf("dm: wait for %q: %w", name, err)
	}
	var info Info
	var failed error
	err = conn.Read(func(uintptr) bool {
		if _, failed = c.run(&request{op: "wait for", cmd: cmdArmPoll, name: name}); failed != nil {
			return true
		}
		info, failed = c.Info(name)
		return failed != nil || info.EventNr != event
	})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return Info{}, fmt.Errorf("dm: wait for %q: %w", name, context.Cause(ctx))
	case err != nil:
		return Info{}, fmt.Errorf("dm: wait for %q: %w", name, err)
	}
	return info, failed
}
