package track

import (
	"errors"
	"fmt"
	"strings"
)

// ErrBadMark says that a text is not a mark.
var ErrBadMark = errors.New("not a mark")

// Mark names a moment in the history of one source: "<kind>:<body>". The kind, of
// lower-case letters, is that of the tracker that made it. The body, of printable
// ASCII without spaces, is understood by that tracker alone. The mark of a [Scan] is
// its kind without a body; the empty mark is none.
type Mark string

// NewMark returns the mark of that kind and body.
func NewMark(kind, body string) Mark { return Mark(kind + ":" + body) }

// Kind returns the kind of the tracker that made the mark; "" for none.
func (m Mark) Kind() string {
	kind, _, _ := strings.Cut(string(m), ":")
	return kind
}

// Body returns what follows the kind; "" when nothing does.
func (m Mark) Body() string {
	_, body, _ := strings.Cut(string(m), ":")
	return body
}

// Valid reports whether m is spelled like a mark. Whether its body means anything is
// known to its tracker.
func (m Mark) Valid() bool {
	if m == scanMark {
		return true
	}
	odd := func(r rune) bool { return r < 'a' || r > 'z' }
	unprintable := func(r rune) bool { return r <= ' ' || r > '~' }
	return m.Kind() != "" && !strings.ContainsFunc(m.Kind(), odd) &&
		m.Body() != "" && !strings.ContainsFunc(m.Body(), unprintable)
}

// BodyOf returns the body of a mark that the tracker of that kind made. The error is a
// LostError when another one made it, and wraps ErrBadMark when m is no mark.
func (m Mark) BodyOf(kind string) (string, error) {
	switch {
	case !m.Valid():
		return "", fmt.Errorf("track: %q: %w", string(m), ErrBadMark)
	case m == scanMark:
		return "", &LostError{Mark: m, Reason: "it was made without tracking"}
	case m.Kind() != kind:
		return "", &LostError{Mark: m, Reason: "it was made by another tracker, not by " + kind}
	}
	return m.Body(), nil
}
