package job

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"tidemark/linux/shell"
)

// Event is what others are told of a job.
type Event string

// The events.
const (
	Success Event = "success"
	Failure Event = "failure"
	Late    Event = "late"
)

// DefaultNotifyLimit is how long telling one event may take when nothing else is said.
const DefaultNotifyLimit = 30 * time.Second

// Notify says who is told of a job's events. Each is a shell command, or a URL that is
// fetched: with POST before it, the message is sent.
type Notify struct {
	OnSuccess, OnFailure, OnLate string
	Limit                        time.Duration // of telling one event; 0 is DefaultNotifyLimit
}

func (n *Notify) set(key string, v any) error {
	var to *string
	switch key {
	case "on-success":
		to = &n.OnSuccess
	case "on-failure":
		to = &n.OnFailure
	case "on-late":
		to = &n.OnLate
	case "notify-timeout":
		return setTime(v, &n.Limit)
	default:
		return errUnknown
	}
	if err := setText(v, to); err != nil {
		return err
	}
	if method, address := ping(*to); method != "" {
		if u, err := url.Parse(address); err != nil || u.Host == "" {
			return fmt.Errorf("%q is no URL with a host", address)
		}
	}
	return nil
}

// inherit takes from all what n does not say itself.
func (n *Notify) inherit(all Notify) {
	for _, e := range []struct {
		own *string
		all string
	}{{&n.OnSuccess, all.OnSuccess}, {&n.OnFailure, all.OnFailure}, {&n.OnLate, all.OnLate}} {
		if *e.own == "" {
			*e.own = e.all
		}
	}
	n.Limit = cmp.Or(n.Limit, all.Limit, DefaultNotifyLimit)
}

// ping splits what is to be fetched; method is "" for a command.
func ping(what string) (method, address string) {
	method, address = http.MethodGet, what
	for _, m := range []string{http.MethodGet, http.MethodPost} {
		if rest, ok := strings.CutPrefix(what, m+" "); ok {
			method, address = m, strings.TrimSpace(rest)
		}
	}
	if !strings.HasPrefix(address, "http://") && !strings.HasPrefix(address, "https://") {
		return "", ""
	}
	return method, address
}

// Tell tells of one event of a job, also when ctx has ended, within its limit.
func (n Notify) Tell(ctx context.Context, job string, event Event, message string) error {
	what := map[Event]string{Success: n.OnSuccess, Failure: n.OnFailure, Late: n.OnLate}[event]
	if what == "" {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	var err error
	if method, address := ping(what); method != "" {
		err = n.fetch(ctx, method, address, message)
	} else {
		var said string
		said, err = shell.Run(ctx, shell.Command{Line: what, Limit: n.Limit, Env: []string{
			"TIDEMARK_JOB=" + job, "TIDEMARK_EVENT=" + string(event), "TIDEMARK_MESSAGE=" + strings.ReplaceAll(message, "\x00", ""),
		}})
		if err != nil && said != "" {
			err = fmt.Errorf("%w: %s", err, said)
		}
	}
	if err != nil {
		return fmt.Errorf("job %s: nobody was told of this %s: on-%s: %w", job, event, event, err)
	}
	return nil
}

// fetch asks for one address. Its error names the host alone: what follows is often a
// secret.
func (n Notify) fetch(ctx context.Context, method, address, message string) error {
	ctx, cancel := context.WithTimeout(ctx, n.Limit)
	defer cancel()
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader(message + "\n")
	}
	req, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return errors.New("no URL")
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	req.Header.Set("User-Agent", "tidemark")
	resp, err := (&http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}).Do(req)
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s did not answer within %v", req.URL.Host, n.Limit)
	case err != nil:
		return fmt.Errorf("%s: %w", req.URL.Host, err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode >= 400 {
		return fmt.Errorf("%s answered %s", req.URL.Host, resp.Status)
	}
	return nil
}
