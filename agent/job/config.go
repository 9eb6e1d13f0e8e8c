package job

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// ErrConfig says that a file of jobs is wrong; what is wrong is in Faults.
var ErrConfig = errors.New("the file of jobs is wrong")

// MaxConfig bounds a file of jobs, in bytes.
const MaxConfig = 1 << 20

// Fault is one thing that is wrong in a file of jobs.
type Fault struct {
	File string
	Line int    // from 1
	Text string // what is wrong, and what to write instead
}

func (f Fault) String() string { return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.Text) }

// Faults is all that is wrong in a file of jobs, by line. It wraps ErrConfig.
type Faults []Fault

func (f Faults) Error() string {
	var lines []string
	for _, fault := range f {
		lines = append(lines, fault.String())
	}
	return strings.Join(lines, "\n")
}

func (f Faults) Unwrap() error { return ErrConfig }

// Load reads a file of jobs. The error is Faults, or that of reading.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("jobs: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("jobs: %w", err)
	}
	return Parse(path, b)
}

// Parse reads the bytes of a file of jobs that has that name. The error is Faults.
func Parse(name string, b []byte) (*Config, error) {
	r := &reader{file: name}
	if len(b) > MaxConfig {
		r.fault(1, "the file has more than %d bytes", MaxConfig)
		return nil, r.faults
	}
	var tree map[string]any
	if err := toml.NewDecoder(bytes.NewReader(b)).Decode(&tree); err != nil {
		line := 1
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, _ = at.Position()
		}
		r.fault(line, "%s", strings.TrimPrefix(err.Error(), "toml: "))
		return nil, r.faults
	}
	r.lines = linesOf(b)
	c := r.config(tree)
	if len(r.faults) > 0 {
		slices.SortStableFunc(r.faults, func(a, b Fault) int { return cmp.Or(a.Line-b.Line, strings.Compare(a.Text, b.Text)) })
		return nil, r.faults
	}
	c.Path = name
	return c, nil
}

// reader turns the tree of a file into jobs, and collects what is wrong.
type reader struct {
	file   string
	lines  map[string]int // of each key, see linesOf
	faults Faults
}

func (r *reader) fault(line int, format string, args ...any) {
	r.faults = append(r.faults, Fault{r.file, line, fmt.Sprintf(format, args...)})
}

// line returns that of a key, or of the nearest table around it.
func (r *reader) line(path ...string) int {
	for ; len(path) > 0; path = path[:len(path)-1] {
		if n := r.lines[joinKey(path)]; n > 0 {
			return n
		}
	}
	return 1
}

func (r *reader) config(tree map[string]any) *Config {
	c := &Config{}
	var notify Notify
	for key, v := range tree {
		var err error
		switch {
		case key == "job":
			err = r.jobs(c, v)
		case key == "metrics":
			if err = setText(v, &c.Metrics); err == nil && !filepath.IsAbs(c.Metrics) {
				err = fmt.Errorf("%q does not begin with /", c.Metrics)
			}
		default:
			err = notify.set(key, v)
		}
		if errors.Is(err, errUnknown) {
			err = errors.New("there is no such key; a job is a table, as [job.NAME]")
		}
		if err != nil {
			r.fault(r.line(key), "%s: %v", key, err)
		}
	}
	slices.SortFunc(c.Jobs, func(a, b Job) int { return cmp.Or(a.Line-b.Line, strings.Compare(a.Name, b.Name)) })
	for i := range c.Jobs {
		c.Jobs[i].Notify.inherit(notify)
	}
	r.shared(c.Jobs)
	return c
}

// A name stands in those of units and files.
var nameRule = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

func (r *reader) jobs(c *Config, v any) error {
	tables, ok := v.(map[string]any)
	if !ok {
		return errors.New("a job is a table with a name, as [job.NAME]")
	}
	for name, v := range tables {
		at := r.line("job", name)
		if !nameRule.MatchString(name) {
			r.fault(at, "job %q: a name has letters, digits, _ . and - only, begins with a letter or digit, and has 64 at most", name)
			continue
		}
		table, ok := v.(map[string]any)
		if !ok {
			r.fault(at, "job %s: it is a table, as [job.%s]", name, name)
			continue
		}
		c.Jobs = append(c.Jobs, r.job(name, at, table))
	}
	return nil
}

func (r *reader) job(name string, line int, table map[string]any) Job {
	j := Job{Name: name, Line: line, ScheduleLine: r.line("job", name, "schedule")}
	bad := func(key string, err error) {
		r.fault(r.line("job", name, key), "job %s: %s: %v", name, key, err)
	}
	var single Pair
	before := len(r.faults)
	for key, v := range table {
		var err error
		switch key {
		case "source":
			err = setText(v, &single.Source)
		case "target":
			err = setText(v, &single.Target)
		case "pairs":
			j.Pairs, err = r.pairs(name, v)
		default:
			err = j.set(key, v)
		}
		if err != nil {
			bad(key, err)
		}
	}
	_, many := table["pairs"]
	switch {
	case many && single != Pair{}:
		bad("pairs", errors.New("give either source and target, or pairs"))
	case !many:
		j.Pairs = []Pair{single}
	}
	unsure := len(r.faults) > before // what is missing may be what is wrong
	for i, p := range j.Pairs {
		at := []string{"job", name}
		if many {
			at = append(at, "pairs", fmt.Sprint(i))
		}
		r.pair(name, at, p, unsure)
	}
	if unsure {
		return j
	}
	if j.Whole && j.ForcePart {
		bad("force-part", errors.New("it does not go together with whole"))
	}
	if j.Jitter > 0 && j.Schedule == "" {
		bad("jitter", errors.New("it delays what has a schedule, and there is none"))
	}
	return j
}

func (r *reader) pairs(name string, v any) ([]Pair, error) {
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		return nil, errors.New(`it is a list, as [{source = "/dev/vdb", target = "/backup/vdb.img"}]`)
	}
	var all []Pair
	for i, v := range list {
		table, ok := v.(map[string]any)
		if !ok {
			return nil, errors.New(`each entry is {source = "…", target = "…"}`)
		}
		var p Pair
		for key, v := range table {
			err := errUnknown
			switch key {
			case "source":
				err = setText(v, &p.Source)
			case "target":
				err = setText(v, &p.Target)
			}
			if err != nil {
				r.fault(r.line("job", name, "pairs", fmt.Sprint(i), key), "job %s: pairs: %s: %v", name, key, err)
			}
		}
		all = append(all, p)
	}
	return all, nil
}

// tags are the names of devices that are no paths.
var tags = []string{"UUID=", "LABEL=", "PARTUUID=", "PARTLABEL="}

// pair judges one pair, whose key is at. Where it is unsure what is there, it says nothing of what
// is missing.
func (r *reader) pair(name string, at []string, p Pair, unsure bool) {
	for _, end := range []struct{ key, path string }{{"source", p.Source}, {"target", p.Target}} {
		line := r.line(append(slices.Clone(at), end.key)...)
		tagged := slices.ContainsFunc(tags, func(tag string) bool { return strings.HasPrefix(end.path, tag) })
		switch {
		case end.path == "" && unsure:
		case end.path == "":
			r.fault(line, "job %s: it has no %s", name, end.key)
		case !tagged && !filepath.IsAbs(end.path):
			r.fault(line, "job %s: %s %q does not begin with /, and a job has no folder that it starts from", name, end.key, end.path)
		}
	}
}

// shared refuses a target of two pairs.
func (r *reader) shared(jobs []Job) {
	owner := map[string]string{}
	for _, j := range jobs {
		for i, p := range j.Pairs {
			target := filepath.Clean(p.Target)
			if other, taken := owner[target]; taken && p.Target != "" {
				line := r.line("job", j.Name, "target")
				if len(j.Pairs) > 1 {
					line = r.line("job", j.Name, "pairs", fmt.Sprint(i), "target")
				}
				r.fault(line, "job %s: target %s is that of job %s too: give each copy a target of its own", j.Name, p.Target, other)
			}
			owner[target] = j.Name
		}
	}
}
