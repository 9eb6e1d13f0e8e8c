package boot

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Action is what Apply does to a file.
type Action string

// The actions.
const (
	Write  Action = "write"  // it is not there, or ours and to be replaced
	Remove Action = "remove" // it is ours and not wanted any more
	Keep   Action = "keep"   // it is right already
	Refuse Action = "refuse" // it is not ours, or was changed
)

// Step is what a plan does to one file.
type Step struct {
	File   File
	Action Action
	State  FileState // before
}

// Plan lists the changes that make a system boot with a table. Apply does them.
type Plan struct {
	Steps []Step
	next  record
}

// Plan compares the system's files with those of a table. A file that was changed by hand
// is refused, or replaced when force is set. A file that is not ours is always refused.
// The error wraps ErrUnsuitable when nothing in the system would open an entry.
func (s *System) Plan(t Tab, program string, force bool) (Plan, error) {
	if err := s.suits(t); err != nil {
		return Plan{}, err
	}
	known, err := readRecord(s.root)
	if err != nil {
		return Plan{}, err
	}
	return s.planOf(t, program, known, force)
}

func (s *System) planOf(t Tab, program string, known record, force bool) (Plan, error) {
	p := Plan{next: record{Version: recordVersion, Program: program, Sums: map[string][]string{}}}
	for _, f := range render(t, program, s.Generators()) {
		p.next.Sums[f.Path] = []string{f.sum()}
		if err := p.add(s, known, f, Write, force); err != nil {
			return Plan{}, err
		}
	}
	for _, path := range slices.Sorted(maps.Keys(known.Sums)) {
		if p.next.Sums[path] != nil {
			continue
		}
		if err := p.add(s, known, File{Path: path}, Remove, force); err != nil {
			return Plan{}, err
		}
	}
	p.addTab(s, t)
	return p, nil
}

// suits refuses entries that nothing in the system would open.
func (s *System) suits(t Tab) error {
	if t.Early() && len(s.Generators()) == 0 {
		return fmt.Errorf("boot: %s: %w: neither initramfs-tools nor dracut is installed", s.dir, ErrUnsuitable)
	}
	if len(t.Stage(StageSystem))+len(t.Tracked()) > 0 && !s.has("/usr/lib/systemd/systemd", "/lib/systemd/systemd") {
		return fmt.Errorf("boot: %s: %w: systemd is not installed", s.dir, ErrUnsuitable)
	}
	return nil
}

func (p *Plan) add(s *System, known record, f File, action Action, force bool) error {
	state, err := known.state(s.root, f)
	if err != nil {
		return err
	}
	switch {
	case action == Write && state == Same, action == Remove && state == Missing:
		action = Keep
	case state == Foreign, state == Changed && !force:
		action = Refuse
	}
	p.Steps = append(p.Steps, Step{f, action, state})
	return nil
}

// addTab adds the table: first where it gets entries, last where it loses some. So a unit
// never asks for a device that the table lacks, also after a cut.
func (p *Plan) addTab(s *System, t Tab) {
	f := File{Path: TabPath, Mode: 0o644, Data: t.Bytes()}
	have, err := readFile(s.root, TabPath)
	switch {
	case t.Empty():
		if err == nil {
			p.Steps = append(p.Steps, Step{f, Remove, Same})
		}
	case err == nil && have.sum() == f.sum():
		p.Steps = slices.Insert(p.Steps, 0, Step{f, Keep, Same})
	case err == nil && loses(have.Data, t):
		p.Steps = append(p.Steps, Step{f, Write, Outdated})
	default:
		p.Steps = slices.Insert(p.Steps, 0, Step{f, Write, Outdated})
	}
}

// loses reports whether a table has entries that t lacks.
func loses(before []byte, t Tab) bool {
	old, err := ParseTab(before)
	return err == nil && slices.ContainsFunc(old.Entries(), func(e Entry) bool {
		_, err := t.Find(e.Name)
		return err != nil
	})
}

// Refused returns why Apply would refuse the plan, nil when it would not. The error wraps
// ErrNotOurs or ErrChanged.
func (p Plan) Refused() error {
	var all error
	for _, step := range p.Steps {
		if step.Action != Refuse {
			continue
		}
		cause := ErrNotOurs
		if step.State == Changed {
			cause = ErrChanged
		}
		all = errors.Join(all, fmt.Errorf("boot: %s: %w", step.File.Path, cause))
	}
	return all
}

// Changes reports whether the plan does anything.
func (p Plan) Changes() bool {
	return slices.ContainsFunc(p.Steps, func(s Step) bool { return s.Action == Write || s.Action == Remove })
}
