package job

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/pelletier/go-toml/v2/unstable"

	"tidemark/transfer/pairs"
)

var errUnknown = errors.New("there is no such key")

// set takes the value of one key of a job.
func (j *Job) set(key string, v any) error {
	switch key {
	case "tracker":
		return setChoice(v, &j.Tracker, "auto", "bpf", "era", "scan")
	case "view":
		return setChoice(v, &j.View, "auto", "freeze", "offline", "thin", "dm")
	case "bwlimit":
		return setRate(v, &j.BytesPerSec)
	case "whole":
		return setBool(v, &j.Whole)
	case "force-part":
		return setBool(v, &j.ForcePart)
	case "max-freeze":
		return setFreeze(v, &j.MaxFreeze)
	case "pre-hook":
		return setText(v, &j.PreHook)
	case "post-hook":
		return setText(v, &j.PostHook)
	case "hook-timeout":
		return setTime(v, &j.HookTimeout)
	case "schedule":
		return setLine(v, &j.Schedule)
	case "jitter":
		return setTime(v, &j.Jitter)
	case "max-age":
		return setTime(v, &j.MaxAge)
	case "retention", "keep":
		return errors.New("a mirror keeps one copy: there is nothing to retain. Remove the line; to keep older ones, copy the image and its folder after each run (on-success), as with cp --reflink")
	}
	return j.Notify.set(key, v)
}

func setText(v any, to *string) error {
	s, ok := v.(string)
	if !ok || s == "" {
		return fmt.Errorf(`want text in quotes, as "…", not %v`, v)
	}
	if strings.ContainsRune(s, 0) {
		return errors.New("no text has a zero byte in it")
	}
	*to = s
	return nil
}

func setBool(v any, to *bool) error {
	is, ok := v.(bool)
	if !ok {
		return fmt.Errorf("want true or false, not %v", v)
	}
	*to = is
	return nil
}

// setLine takes text that stands on one line of another file.
func setLine(v any, to *string) error {
	var s string
	if err := setText(v, &s); err != nil {
		return err
	}
	if strings.ContainsFunc(s, unicode.IsControl) || strings.HasSuffix(s, `\`) {
		return fmt.Errorf("%q is not one line", s)
	}
	*to = s
	return nil
}

func setChoice(v any, to *string, allowed ...string) error {
	s, ok := v.(string)
	if !ok || !slices.Contains(allowed, s) {
		return fmt.Errorf("%v is none of %s", v, strings.Join(allowed, ", "))
	}
	*to = s
	return nil
}

func setTime(v any, to *time.Duration) error {
	s, _ := v.(string)
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return fmt.Errorf(`want a time above zero with its unit (h, m, s, ms) in quotes, as "90m", not %v`, v)
	}
	*to = d
	return nil
}

func setFreeze(v any, to *time.Duration) error {
	if err := setTime(v, to); err != nil {
		return err
	}
	if *to > pairs.ForcedFreeze {
		return fmt.Errorf("%v is more than %v, the longest that filesystems are ever frozen", *to, pairs.ForcedFreeze)
	}
	return nil
}

func setRate(v any, to *int64) error {
	s, ok := v.(string)
	if !ok {
		return fmt.Errorf(`want a size with its unit in quotes, as "100MB" or "64M", not %v`, v)
	}
	n, err := ParseRate(s)
	if err != nil {
		return err
	}
	*to = n
	return nil
}

// joinKey makes one text of the parts of a key.
func joinKey(path []string) string { return strings.Join(path, "\x00") }

// linesOf returns the line of every key of a file that parses, under its whole path.
// Entries of a list have their number, from 0, as a part of the path.
func linesOf(b []byte) map[string]int {
	w := keyWalk{lines: map[string]int{}, entries: map[string]int{}}
	w.parser.Reset(b)
	var table []string
	for w.parser.NextExpression() {
		switch n := w.parser.Expression(); n.Kind {
		case unstable.Table:
			table = w.key(nil, n)
		case unstable.ArrayTable:
			table = w.key(nil, n)
			list := joinKey(table)
			table = append(table, fmt.Sprint(w.entries[list]))
			w.note(table, w.lines[list])
			w.entries[list]++
		case unstable.KeyValue:
			w.pair(table, n)
		}
	}
	return w.lines
}

type keyWalk struct {
	parser  unstable.Parser
	lines   map[string]int
	entries map[string]int // of each list of tables, so far
}

func (w *keyWalk) note(path []string, line int) {
	if w.lines[joinKey(path)] == 0 {
		w.lines[joinKey(path)] = line
	}
}

// key notes the parts of a node's key below path, and returns the whole.
func (w *keyWalk) key(path []string, n *unstable.Node) []string {
	path = slices.Clone(path)
	for it := n.Key(); it.Next(); {
		part := it.Node()
		path = append(path, string(part.Data))
		w.note(path, w.parser.Shape(part.Raw).Start.Line)
	}
	return path
}

func (w *keyWalk) pair(path []string, n *unstable.Node) {
	w.value(w.key(path, n), n.Value())
}

func (w *keyWalk) value(path []string, v *unstable.Node) {
	switch v.Kind {
	case unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			w.pair(path, it.Node())
		}
	case unstable.Array:
		for it, i := v.Children(), 0; it.Next(); i++ {
			w.value(append(slices.Clone(path), fmt.Sprint(i)), it.Node())
		}
	}
}
