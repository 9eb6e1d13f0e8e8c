package job_test

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"tidemark/agent/job"
)

const whole = `metrics = "/run/tidemark.prom"
on-failure = "mail root"
notify-timeout = "5s"

[job.srv]
source = "/dev/vdb1"
target = "/backup/vdb1.img"
tracker = "scan"
view = "offline"
whole = true
bwlimit = "64MiB"
max-freeze = "1500ms"
pre-hook = "lock"
post-hook = "unlock"
hook-timeout = "2m"
schedule = "Mon..Fri 02:30"
jitter = "10m"
max-age = "26h"
on-success = "POST https://ping.example/a"
on-failure = "https://ping.example/a/fail"

[job.data-2]
pairs = [
	{source = "UUID=1-2", target = "/backup/a.img"},
	{source = "/dev/vdc", target = "PARTUUID=3-4"},
]
`

func TestAFileOfJobsSaysAllThatARunIsTold(t *testing.T) {
	c, err := job.Parse("tidemark.toml", []byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	want := job.Config{Path: "tidemark.toml", Metrics: "/run/tidemark.prom", Jobs: []job.Job{
		{
			Name: "srv", Line: 5, Pairs: []job.Pair{{Source: "/dev/vdb1", Target: "/backup/vdb1.img"}},
			Tracker: "scan", View: "offline", Whole: true, BytesPerSec: 64 << 20, MaxFreeze: 1500 * time.Millisecond,
			PreHook: "lock", PostHook: "unlock", HookTimeout: 2 * time.Minute,
			Schedule: "Mon..Fri 02:30", ScheduleLine: 16, Jitter: 10 * time.Minute, MaxAge: 26 * time.Hour,
			Notify: job.Notify{OnSuccess: "POST https://ping.example/a", OnFailure: "https://ping.example/a/fail", Limit: 5 * time.Second},
		},
		{
			Name: "data-2", Line: 22, ScheduleLine: 22,
			Pairs:  []job.Pair{{Source: "UUID=1-2", Target: "/backup/a.img"}, {Source: "/dev/vdc", Target: "PARTUUID=3-4"}},
			Notify: job.Notify{OnFailure: "mail root", Limit: 5 * time.Second},
		},
	}}
	if !reflect.DeepEqual(*c, want) {
		t.Errorf("got  %+v\nwant %+v", *c, want)
	}
}

// Each fault stands in the line that is marked with it.
const faulty = `metrics = "rel"                       # does not begin with /
retries = 3                           # no such key
on-late = "https:///x"                # no URL with a host
[job.srv]                             # no target
source = "/dev/vdb1"
[job.limits]
source = "/dev/a"
target = "/a.img"
tarrget = "/b.img"                    # no such key
bwlimit = 100                         # want a size
max-freeze = "0s"                     # want a time above zero
max-age = "1 day"                     # want a time above zero
whole = "yes"                         # want true or false
view = "copy"                         # none of auto, freeze, offline, thin, dm
schedule = "a\nb"                     # not one line
pre-hook = ""                         # want text
retention = "7d"                      # a mirror keeps one copy
[job.both]
source = "/dev/a"
pairs = [{source = "/dev/a", target = "/d.img"}] # either source and target, or pairs
[job.here]
source = "disk.img"                   # does not begin with /
target = "here.img"                   # does not begin with /
jitter = "5m"                         # there is none
[job.two]
source = "disk.img"                   # does not begin with /
target = "/two.img"
keepit = 3                            # no such key
[job.most]
source = "/dev/a"
target = "/most.img"
bwlimit = "100"                       # less than the least, 64K
max-freeze = "3h"                     # the longest that filesystems are ever frozen
[job.part]
source = "/dev/a"
target = "/part.img"
whole = true
force-part = true                     # does not go together
[job."a b"]                           # a name has letters
[job.first]
source = "/dev/a"
target = "/same.img"
[job.second]
pairs = [
  {source = "/dev/a", target = "/other.img"},
  {source = "/dev/b",
   target = "//same.img"},            # that of job first too
  {source = "/dev/c", sink = "/x"},   # no such key
]
[[job.third.pairs]]
source = "/dev/a"
target = "/third.img"
[[job.third.pairs]]
source = "/dev/b"
target = "/third.img"                 # that of job third too
`

func TestEveryFaultIsToldWithItsLine(t *testing.T) {
	_, err := job.Parse("j.toml", []byte(faulty))
	var faults job.Faults
	if !errors.As(err, &faults) || !errors.Is(err, job.ErrConfig) {
		t.Fatalf("%v", err)
	}
	byLine := map[int]string{}
	for _, f := range faults {
		if byLine[f.Line] != "" {
			t.Errorf("a second fault: %v", f)
		}
		byLine[f.Line] = f.String()
	}
	for i, line := range strings.Split(faulty, "\n") {
		_, want, marked := strings.Cut(line, " # ")
		if got := byLine[i+1]; marked != (got != "") || !strings.Contains(got, want) || marked && !strings.HasPrefix(got, "j.toml:") {
			t.Errorf("line %d: %q, want %q", i+1, got, want)
		}
	}
}

func TestWhatIsNoTOMLIsToldWithItsLine(t *testing.T) {
	for text, line := range map[string]int{
		"a = \"x\n":                          1,
		"\n\n[job.x]\nsource = 1\n[job.x":    5,
		"[job.a]\n[job.b]\n[job.a]\n":        3,
		"job = 3":                            1,
		"[job]\nx = 3":                       2,
		"\n\xff":                             2,
		strings.Repeat("#", job.MaxConfig+1): 1,
	} {
		_, err := job.Parse("j.toml", []byte(text))
		var faults job.Faults
		if !errors.As(err, &faults) || faults[0].Line != line || strings.Contains(err.Error(), "toml:") && !strings.HasPrefix(err.Error(), "j.toml:") {
			t.Errorf("%.20q: %v, want line %d", text, err, line)
		}
	}
}

// The file that is installed has all its lines commented out; with them it must be right.
func TestTheInstalledFileIsRight(t *testing.T) {
	const path = "../../dist/tidemark.toml"
	if c, err := job.Load(path); err != nil || len(c.Jobs) != 0 {
		t.Errorf("%v, %v", c, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for line := range strings.Lines(string(b)) {
		if strings.ContainsAny(line, "=[{]}") {
			line = strings.TrimPrefix(line, "# ")
		}
		text.WriteString(line)
	}
	if c, err := job.Parse(path, []byte(text.String())); err != nil || len(c.Jobs) != 2 {
		t.Errorf("%v, %v", c, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte(faulty))
	f.Add([]byte("[[job.x.pairs]]\nsource.a = {b = [1, {c = 2}]}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := job.Parse("f", b)
		lines := strings.Count(string(b), "\n") + 1
		if err != nil {
			var faults job.Faults
			if !errors.As(err, &faults) || len(faults) == 0 {
				t.Fatalf("%v", err)
			}
			for _, fault := range faults {
				if fault.Line < 1 || fault.Line > lines {
					t.Errorf("%v: the file has %d lines", fault, lines)
				}
			}
			return
		}
		for _, j := range c.Jobs {
			if strings.ContainsAny(j.Name, "/ %\x00") || j.Line < 1 || j.Line > lines || len(j.Pairs) == 0 || j.MaxAge < 0 || j.BytesPerSec < 0 || strings.ContainsAny(j.Schedule, "\n\r") {
				t.Errorf("%+v", j)
			}
			for _, p := range j.Pairs {
				if p.Source == "" || p.Target == "" {
					t.Errorf("%+v", j)
				}
			}
		}
	})
}
