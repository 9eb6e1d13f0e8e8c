package job_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark/agent/job"
	"tidemark/linux/atomicfile"
	"tidemark/transfer"
)

// listener is a server that is pinged.
type listener struct {
	*httptest.Server
	mu    sync.Mutex
	heard []string
}

func listen(t *testing.T) *listener {
	l := &listener{}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.heard = append(l.heard, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+string(body)))
		if r.URL.Path == "/gone" {
			w.WriteHeader(http.StatusGone)
		}
	}))
	t.Cleanup(l.Close)
	return l
}

// take returns what was heard since the last call.
func (l *listener) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	heard := strings.Join(l.heard, ", ")
	l.heard = nil
	return heard
}

// works is a run that makes a copy.
func works(context.Context) ([]transfer.Report, error) {
	return []transfer.Report{{Read: 300, Written: 200, FrozenMS: 4}, {Read: 30, Written: 20, FrozenMS: 5}}, nil
}

func fails(context.Context) ([]transfer.Report, error) { return nil, errors.New("no disk") }

func noWarning(t *testing.T) func(error) {
	return func(err error) { t.Helper(); t.Errorf("warning: %v", err) }
}

func one(t *testing.T, n job.Notify) (job.Store, *job.Config, job.Job) {
	n.Limit = time.Minute
	c := &job.Config{Metrics: t.TempDir() + "/tidemark.prom", Jobs: []job.Job{{Name: "srv", MaxAge: time.Hour, Notify: n}, {Name: "new"}}}
	return job.Store{Dir: t.TempDir() + "/jobs"}, c, c.Jobs[0]
}

func TestARunIsKeptAndTold(t *testing.T) {
	l := listen(t)
	s, c, j := one(t, job.Notify{OnSuccess: l.URL + "/good", OnFailure: "POST " + l.URL + "/bad"})
	if err := s.Run(t.Context(), c, j, works, noWarning(t)); err != nil {
		t.Fatal(err)
	}
	if got := l.take(); got != "GET /good" {
		t.Errorf("heard %q", got)
	}
	good, err := s.Record("srv")
	if err != nil || good.Outcome != job.OK || good.Runs != 1 || good.Read != 330 || good.Written != 220 || good.FrozenMS != 5 || !good.LastSuccess.Equal(good.Began) {
		t.Errorf("%+v, %v", good, err)
	}
	if err := s.Run(t.Context(), c, j, fails, noWarning(t)); err == nil || err.Error() != "no disk" {
		t.Errorf("%v", err)
	}
	if got := l.take(); got != "POST /bad job srv: no disk" {
		t.Errorf("heard %q", got)
	}
	bad, err := s.Record("srv")
	if err != nil || bad.Outcome != "no disk" || bad.Runs != 2 || bad.Failures != 1 || bad.Read != 0 || !bad.LastSuccess.Equal(good.LastSuccess) || !bad.First.Equal(good.First) {
		t.Errorf("%+v, %v", bad, err)
	}
}

func TestARunThatWasKilledHasFailed(t *testing.T) {
	s, c, j := one(t, job.Notify{})
	var during job.Record
	err := s.Run(t.Context(), c, j, func(ctx context.Context) ([]transfer.Report, error) {
		var err error
		if during, err = s.Record("srv"); err != nil {
			t.Error(err)
		}
		return works(ctx)
	}, noWarning(t))
	if err != nil || during.Runs != 1 || during.Outcome == job.OK {
		t.Errorf("%+v, %v", during, err)
	}
	if err := atomicfile.WriteJSON(filepath.Join(s.Dir, "srv.run.json"), atomicfile.Options{}, during); err != nil { // what a kill leaves
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), c, j, works, noWarning(t)); err != nil {
		t.Error(err)
	}
	if r, err := s.Record("srv"); err != nil || r.Runs != 2 || r.Failures != 1 || r.Outcome != job.OK {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestAJobDoesNotRunTwiceAtOnce(t *testing.T) {
	s, c, j := one(t, job.Notify{})
	err := s.Run(t.Context(), c, j, func(ctx context.Context) ([]transfer.Report, error) {
		if !s.Running("srv") || s.Running("new") {
			t.Error("who runs is not told")
		}
		if err := s.Run(ctx, c, j, fails, noWarning(t)); !errors.Is(err, job.ErrBusy) {
			t.Errorf("a second run: %v", err)
		}
		return works(ctx)
	}, noWarning(t))
	if err != nil {
		t.Error(err)
	}
	if r, err := s.Record("srv"); err != nil || r.Runs != 1 || r.Failures != 0 || s.Running("srv") {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestWhoeverCannotBeToldFailsNoJob(t *testing.T) {
	l := listen(t)
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer silent.Close()
	for what, want := range map[string]string{
		l.URL + "/gone?token=secret":      "410 Gone",
		"http://127.0.0.1:1/token=secret": "connection refused",
		silent.URL + "/token=secret":      "did not answer within 1s",
		"echo why; exit 3":                "exit status 3: why",
	} {
		s, c, j := one(t, job.Notify{OnSuccess: what})
		j.Notify.Limit = time.Second
		var warned []string
		err := s.Run(t.Context(), c, j, works, func(err error) { warned = append(warned, err.Error()) })
		if got := strings.Join(warned, "; "); err != nil || !strings.Contains(got, want) || strings.Contains(got, "secret") {
			t.Errorf("%s: %v, warned %q, want %q", what, err, got, want)
		}
	}
}

func TestACommandFindsWhatHappenedInItsEnvironment(t *testing.T) {
	out := t.TempDir() + "/out"
	ctx, cancel := context.WithCancel(t.Context())
	s, c, j := one(t, job.Notify{OnFailure: `echo "$TIDEMARK_JOB $TIDEMARK_EVENT $TIDEMARK_MESSAGE" >` + out})
	_ = s.Run(ctx, c, j, func(ctx context.Context) ([]transfer.Report, error) {
		cancel() // as a signal does; who waits for it is told all the same
		return fails(ctx)
	}, noWarning(t))
	if b, err := os.ReadFile(out); err != nil || string(b) != "srv failure job srv: no disk\n" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestLatenessIsToldOnceUntilThereIsACopyAgain(t *testing.T) {
	l := listen(t)
	s, c, j := one(t, job.Notify{OnLate: "POST " + l.URL + "/late"})
	late := func(now time.Time) string {
		t.Helper()
		if err := s.Late(t.Context(), c, now, noWarning(t)); err != nil {
			t.Error(err)
		}
		return l.take()
	}
	start := time.Now()
	for _, step := range []struct {
		after time.Duration
		run   func(context.Context) ([]transfer.Report, error)
		want  string
	}{
		{after: 0},
		{after: 59 * time.Minute},
		{after: 61 * time.Minute, want: "POST /late job srv is late: it has made no copy yet, and max-age is 1h0m0s"},
		{after: 9 * time.Hour},
		{after: 10 * time.Hour, run: fails},
		{after: 0, run: works},
		{after: 59 * time.Minute},
		{after: 2 * time.Hour, want: "POST /late job srv is late: its last copy is of "},
		{after: 3 * time.Hour},
		{after: 4 * time.Hour, run: fails},
		{after: 0, run: works},
		{after: 4 * time.Hour, want: "POST /late job srv is late: its last copy is of "},
	} {
		if step.run != nil {
			_ = s.Run(t.Context(), c, j, step.run, noWarning(t))
		}
		if got := late(start.Add(step.after)); !strings.HasPrefix(got, step.want) || (got == "") != (step.want == "") {
			t.Errorf("after %v: heard %q, want %q", step.after, got, step.want)
		}
	}
	since, err := s.LateSince(j, start.Add(3*time.Hour))
	if err != nil || since.Sub(start) < time.Hour || since.Sub(start) > time.Hour+time.Minute {
		t.Errorf("late since %v, %v", since.Sub(start), err)
	}
}

func TestLatenessThatNobodyHeardIsToldAgain(t *testing.T) {
	l := listen(t)
	s, c, _ := one(t, job.Notify{OnLate: l.URL + "/gone"})
	warnings := 0
	for range 3 {
		if err := s.Late(t.Context(), c, time.Now().Add(time.Duration(warnings)*2*time.Hour), func(error) { warnings++ }); err != nil {
			t.Error(err)
		}
		if warnings == 0 {
			warnings++ // the first call only sees the job
		}
	}
	if warnings != 3 {
		t.Errorf("%d tries", warnings-1)
	}
}

func TestMetricsAreThoseOfAllJobs(t *testing.T) {
	s, c, j := one(t, job.Notify{})
	_ = s.Run(t.Context(), c, j, fails, noWarning(t))
	if err := s.Run(t.Context(), c, j, works, noWarning(t)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(c.Metrics)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"# HELP tidemark_job_runs_total Runs that ended, in any way.\n# TYPE tidemark_job_runs_total counter\n" +
			"tidemark_job_runs_total{name=\"srv\"} 2\ntidemark_job_runs_total{name=\"new\"} 0\n",
		"tidemark_job_failures_total{name=\"srv\"} 1\n",
		"tidemark_job_last_run_success{name=\"srv\"} 1\n",
		"tidemark_job_up_to_date{name=\"srv\"} 1\ntidemark_job_up_to_date{name=\"new\"} 0\n",
		"tidemark_job_last_run_read_bytes{name=\"srv\"} 330\n# HELP",
		"tidemark_job_last_run_written_bytes{name=\"srv\"} 220\n",
		"tidemark_job_last_run_frozen_seconds{name=\"srv\"} 0.005\n",
		"tidemark_job_max_age_seconds{name=\"srv\"} 3600\n",
		"tidemark_job_last_success_timestamp_seconds{name=\"srv\"} 1",
		"tidemark_job_last_run_timestamp_seconds{name=\"srv\"} 1",
		"tidemark_job_last_run_duration_seconds{name=\"srv\"} ",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%q is not in:\n%s", want, b)
		}
	}
	if info, err := os.Stat(c.Metrics); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// A disk that is not mounted must not have another filled in its place.
func TestACopyThatIsGoneIsNotMadeAnewUnseen(t *testing.T) {
	l := listen(t)
	s, c, j := one(t, job.Notify{OnFailure: l.URL + "/bad"})
	target := t.TempDir() + "/srv.img"
	j.Pairs = []job.Pair{{Source: "/dev/vdb1", Target: target}, {Source: "/dev/vdb2", Target: "PARTUUID=1"}}
	makes := func(ctx context.Context) ([]transfer.Report, error) {
		if err := os.WriteFile(target, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return works(ctx)
	}
	for range 2 {
		if err := s.Run(t.Context(), c, j, makes, noWarning(t)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(target); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Run(t.Context(), c, j, makes, noWarning(t)); !errors.Is(err, job.ErrGone) || !strings.Contains(err.Error(), target) {
			t.Errorf("%v", err)
		}
		if got := l.take(); got != "GET /bad" {
			t.Errorf("heard %q", got)
		}
	}
	if _, err := os.Stat(target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it was made: %v", err)
	}
	// Another target in the file is a new copy.
	j.Pairs[0].Target = target + "2"
	if err := s.Run(t.Context(), c, j, works, noWarning(t)); err != nil {
		t.Error(err)
	}
}

func TestADamagedRecordBeginsAnew(t *testing.T) {
	s, c, j := one(t, job.Notify{})
	if err := s.Run(t.Context(), c, j, works, noWarning(t)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Dir+"/srv.run.json", []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	warned := 0
	err := s.Run(t.Context(), c, j, works, func(error) { warned++ })
	if r, _ := s.Record("srv"); err != nil || warned != 1 || r.Runs != 1 {
		t.Errorf("%v, %d warnings, %+v", err, warned, r)
	}
}
